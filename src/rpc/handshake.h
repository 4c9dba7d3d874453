#pragma once
/// The first exchange on every connection: Hello, then Welcome or Reject. docs/protocol.md,
/// "Handshake".
///
/// The connecting side calls client_handshake() or channel_handshake(). The accepting side calls
/// server_handshake(); a control peer is welcome on return, a channel request is matched by the
/// caller and answered by accept_channel() or reject(). Errors, always naming the peer: kProtocol
/// (garbage, oversize: says what the bytes look like), kUnsupported (no common version: names
/// both), kTimeout, kUnavailable, or what the peer rejected with. After an error the connection is
/// closed. env and connection live until the coroutine returns.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/channel.h"

namespace recua::rpc {

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr std::uint32_t kOldestProtocolVersion = 1;

/// Feature bits by number; docs/protocol.md, "Features" holds the list. Never reuse one.
enum class Feature : std::uint32_t {
  kTcpChannel = 1,     // Tensor messages on a TCP (later TLS) connection.
  kFetchChunks = 2,    // FetchChunk is answered.
  kLinks = 3,          // Link records on channels: offers, fences. docs/protocol.md, "Links".
  kPushChunks = 4,     // FetchChunk may ask for the chunk on a channel.
  kEcho = 5,           // OpenEcho is answered, for measuring links.
  kTensorSplit = 6,    // A slice may be one rank of several. docs/protocol.md, "Collectives".
  kLora = 7,           // Announced tensors may be those of an adapter (model/lora.h).
  kTraining = 8,       // OpenTraining is answered. docs/protocol.md, "Training".
  kMeasure = 9,        // MeasureSpeed and MeasureLink are answered.
  kPadding = 10,       // Tensor messages on a connection may have padding behind them.
  kGroupOptions = 11,  // LoadSlice may say how ranks sum: rounded, while they compute.
  // Both channels of two ranks run on one connection. docs/protocol.md, "Shared connections".
  kSharedConnection = 12,
};

/// A port of an RDMA device as its owner describes it: for people, and to explain why a link runs
/// on what it does. Links choose by their own offers.
struct RdmaPortInfo {
  std::string device;  // "mlx5_0"
  std::uint32_t port = 1;
  std::uint32_t mtu_bytes = 0;
  std::vector<std::array<std::byte, 16>> gids;

  friend bool operator==(const RdmaPortInfo&, const RdmaPortInfo&) = default;
};

/// Whether `feature` is one of what a peer has told.
bool has_feature(std::span<const std::uint32_t> features, Feature feature);

/// What one end says about itself.
struct PeerInfo {
  std::string name;              // Of the process, for people: "worker box1:7500".
  std::string software_version;  // "0.1.0"
  std::uint32_t protocol_version = kProtocolVersion;  // Agreed, in what a handshake returns.
  std::vector<std::uint32_t> features = {1, 2, 3, 4,
                                         10};  // Common ones, in what a handshake returns.
  std::uint64_t memory_free_bytes = 0;
  std::uint64_t memory_total_bytes = 0;
  std::uint32_t n_threads = 0;
  std::vector<std::uint32_t> data_types;  // GGUF numbers.
  std::string shared_memory_host;         // Equal on both ends: the same host. Empty: none.
  std::vector<RdmaPortInfo> rdma_ports;

  [[nodiscard]] bool has(Feature feature) const { return has_feature(features, feature); }
};

enum class Direction : std::uint8_t { kConnectorSends = 1, kAcceptorSends = 2 };

using Secret = std::array<std::byte, 16>;
/// In time that does not depend on the bytes.
bool secrets_equal(const Secret& a, const Secret& b);
/// 16 bytes of the random source (env.random).
Secret make_secret(const net::Env& env);

struct ChannelRequest {
  ChannelId id;
  std::uint32_t number = 0;  // Which of the plan's channels.
  Direction direction = Direction::kConnectorSends;
  Secret secret{};
  RingShape ring;  // kAcceptorSends: the connector's ring. Else empty.
};

inline constexpr std::uint32_t kRingSlotsMax = 4096;
inline constexpr std::uint64_t kRingSlotBytesMax = std::uint64_t{1} << 30;
/// kProtocol: names the field, its value and the bound.
Result<void> validate(const RingShape& ring);

/// What the acceptor said about itself.
net::asio::awaitable<Result<PeerInfo>> client_handshake(const net::Env& env,
                                                        net::Connection& connection, PeerInfo self,
                                                        net::Duration timeout);

struct ChannelHandshake {
  RingShape ring;  // To send into (kConnectorSends), or the request's own (kAcceptorSends).
  PeerInfo peer;   // With the features that both ends have.
};
/// On success the connection carries what a channel carries, and no frames any more.
net::asio::awaitable<Result<ChannelHandshake>> channel_handshake(const net::Env& env,
                                                                 net::Connection& connection,
                                                                 PeerInfo self,
                                                                 ChannelRequest request,
                                                                 net::Duration timeout);

struct ServerHandshake {
  PeerInfo peer;
  std::optional<ChannelRequest> channel;  // Set: not answered yet.
};
net::asio::awaitable<Result<ServerHandshake>> server_handshake(const net::Env& env,
                                                               net::Connection& connection,
                                                               PeerInfo self,
                                                               net::Duration timeout);

/// Answers a channel request with Welcome. The request's secret is compared with the expected one
/// first: a wrong one is rejected, kInvalidArgument. ring: the acceptor's own (kConnectorSends),
/// else ignored.
net::asio::awaitable<Result<void>> accept_channel(const net::Env& env, net::Connection& connection,
                                                  PeerInfo self, ServerHandshake handshake,
                                                  Secret expected, RingShape ring,
                                                  net::Duration timeout);
/// Tells the peer why not, as far as it still listens, and closes.
net::asio::awaitable<void> reject(const net::Env& env, net::Connection& connection, Error error);

}  // namespace recua::rpc
