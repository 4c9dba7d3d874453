#pragma once
/// Whoever in a worker takes tensor channels: a session for its activations and its weights, an
/// echo for measuring links. The worker finds a channel's host by the session id of the request,
/// checks the secret, and hands the connection over once the handshake is done.
///
/// Threads: the worker's control loop.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/handshake.h"

namespace recua::cluster {

/// A channel after its handshake, before anything runs on it.
struct ChannelEnd {
  std::unique_ptr<net::Connection> connection = {};
  std::uint32_t number = 0;
  std::string name = {};                     // The other end's.
  rpc::RingShape ring = {};                  // Of the receiver.
  std::vector<std::uint32_t> features = {};  // Agreed on.
};

class ChannelHost {
 public:
  ChannelHost() = default;
  ChannelHost(const ChannelHost&) = delete;
  ChannelHost& operator=(const ChannelHost&) = delete;
  virtual ~ChannelHost() = default;

  [[nodiscard]] virtual rpc::ChannelId id() const = 0;
  /// What a connector has to show.
  [[nodiscard]] virtual const rpc::Secret& secret() const = 0;
  /// The ring of the channel of this number that a connector is to send into; its shape is of no
  /// use for a channel that we send on. kNotFound: no such channel is waited for (now).
  [[nodiscard]] virtual Result<rpc::RingShape> ring(const rpc::ChannelRequest& request) const = 0;
  /// Takes a connection whose channel handshake is done. peer has the features that both ends
  /// have. kProtocol: no such channel is waited for.
  virtual Result<void> attach(std::unique_ptr<net::Connection> connection,
                              const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) = 0;
  /// Takes a channel that this host sends on, which the worker has connected. kProtocol: no such
  /// channel is waited for.
  virtual Result<void> attach_out(ChannelEnd end) {
    return Error{ErrorCode::kProtocol,
                 "channel " + std::to_string(end.number) + " is not one to be opened here"};
  }
  /// What the host takes, from its start until it is destroyed; and whether that is allocated.
  [[nodiscard]] virtual std::uint64_t memory_bytes() const = 0;
  [[nodiscard]] virtual bool loaded() const = 0;
};

}  // namespace recua::cluster
