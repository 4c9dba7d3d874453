#pragma once
/// Channels that use their connection and nothing else: TCP, later TLS, and the simulated network.
/// docs/protocol.md, "Tensor messages".
///
/// The sender writes header, rows and descriptor in one gathered call straight from the caller's
/// memory; the receiver reads rows straight into the slot (stream_reader.h). Credits go back when
/// half the ring is spent, as one cumulative number.
///
/// The connection has its channel handshake behind it and was moved to the polling thread's loop.

#include <memory>
#include <span>
#include <utility>

#include "rpc/link.h"

namespace recua::rpc {

/// ring: what the receiver said in the handshake. Session and epoch are those of each message.
inline std::unique_ptr<ChannelSender> make_tcp_sender(
    std::unique_ptr<net::Connection> connection, RingShape ring,
    std::span<const std::uint32_t> peer_features = {}) {
  return make_link_sender({}, std::move(connection), ring, {}, peer_features);
}

/// As make_link_receiver().
inline Result<std::unique_ptr<ChannelReceiver>> make_tcp_receiver(
    std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
    std::span<std::byte> memory) {
  return make_link_receiver({}, std::move(connection), id, ring, {.bytes = memory});
}

}  // namespace recua::rpc
