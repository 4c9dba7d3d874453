#pragma once
/// Links: channels that run on the best transport both ends have, in the order shared memory, RDMA,
/// TCP, and go on over the next one when it fails. docs/protocol.md, "Links"; docs/rdma.md.
///
/// A link starts on the connection of its channel handshake, which stays open as its control side:
/// the sender offers what it has, the receiver picks, both log one line. Until that is settled no
/// message leaves. When lanes fail, the receiver fences them and says what has arrived; the sender
/// sends the rest again over what is left, at last over the connection itself, and offers again
/// later. The connection's own end is the channel's end.
///
/// One ring, one sequence: message s lies in slot s mod n_slots whatever carried it.
/// Threads: made anywhere, then used by the thread of the context's executor.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "net/connection.h"
#include "net/verbs/address.h"
#include "net/verbs/verbs.h"
#include "rpc/channel.h"

namespace recua::rpc {

/// What this process lets its links use. Built once, outlives them.
struct LinkPolicy {
  bool allow_shared_memory = false;
  std::string host_identity;  // net/shm/shared_memory.h; needed for shared memory.
  bool allow_rdma = false;
  std::string no_rdma_reason = "does not use RDMA";  // Completes "this end ...", "the peer ...".
  net::verbs::Provider* provider = nullptr;          // Set when RDMA is allowed.
  net::verbs::PortFilter ports;
  bool use_immediate = true;  // False: WRITE + SEND, as a device without immediates.
  bool use_rdma_cm = false;   // Connect through rdma_cm even where the handshake would do.
  std::size_t lanes_max = 4;
  std::uint64_t stripe_bytes_min = std::uint64_t{128} << 10;  // Smaller messages go by one lane.
  net::Duration settle_timeout = std::chrono::seconds(10);
  net::Duration retry_min = std::chrono::seconds(2);  // After a failure, until RDMA is tried again.
  net::Duration retry_max = std::chrono::seconds(60);
  /// Received messages are held back for so long, to try what a slower link would do.
  net::Duration delay = net::Duration::zero();
};

/// Whose link it is.
struct LinkContext {
  net::Env env;                        // Its executor is the polling thread's loop.
  const LinkPolicy* policy = nullptr;  // Null: the connection only.
  std::string self = {};               // For log lines: "box1:7500".
  std::string other = {};              // Empty: the connection's peer.
  /// Called for each line that tells which transport is used and why; default: logged as info.
  std::function<void(const std::string&)> report = {};
};

/// The ring's memory: n_slots * slot_bytes, slot k at k * slot_bytes.
struct RingMemory {
  std::span<std::byte> bytes;
  int shared_fd = -1;  // A sealed memfd whose mapping bytes is, from its start; -1: private memory.
};

/// What a link starts on. Two links of opposite directions between the same two processes, on one
/// thread at either end, may share it where both ends do (Feature::kSharedConnection): then each
/// message carries the acknowledgement of the one before it, and an error of one ends both.
class LinkStream;
/// peer: what messages call the other end; empty: as the connection does.
std::shared_ptr<LinkStream> make_link_stream(std::unique_ptr<net::Connection> connection,
                                             std::string peer = {});

/// sources: memory that messages' rows will lie in; outlives the sender. Rows elsewhere are copied.
/// peer_features: what the handshake agreed on.
std::unique_ptr<ChannelSender> make_link_sender(LinkContext context,
                                                std::shared_ptr<LinkStream> stream, RingShape ring,
                                                std::vector<std::span<std::byte>> sources,
                                                std::span<const std::uint32_t> peer_features);
inline std::unique_ptr<ChannelSender> make_link_sender(
    LinkContext context, std::unique_ptr<net::Connection> connection, RingShape ring,
    std::vector<std::span<std::byte>> sources, std::span<const std::uint32_t> peer_features) {
  return make_link_sender(std::move(context), make_link_stream(std::move(connection)), ring,
                          std::move(sources), peer_features);
}

/// memory outlives the receiver. kInvalidArgument: too little memory, or no room for a header.
Result<std::unique_ptr<ChannelReceiver>> make_link_receiver(LinkContext context,
                                                            std::shared_ptr<LinkStream> stream,
                                                            ChannelId id, RingShape ring,
                                                            RingMemory memory);
inline Result<std::unique_ptr<ChannelReceiver>> make_link_receiver(
    LinkContext context, std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
    RingMemory memory) {
  return make_link_receiver(std::move(context), make_link_stream(std::move(connection)), id, ring,
                            memory);
}

}  // namespace recua::rpc
