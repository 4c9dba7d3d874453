#pragma once
/// Channels on a byte stream: TCP, later TLS, and the simulated network. docs/protocol.md, "Tensor
/// messages".
///
/// The sender writes header, rows and descriptor in one gathered call straight from the caller's
/// memory. The receiver reads them straight into the slot: it asks for as many bytes as the last
/// messages had, so a stream of equal messages costs one call each. Only when messages get shorter
/// can the head of the next one arrive in the wrong slot; it is then copied over and counted in
/// payload_copies. Credits go back when half the ring is spent, as one cumulative number.
///
/// The connection has its channel handshake behind it and was moved to the polling thread's loop.

#include <cstddef>
#include <memory>
#include <span>

#include "net/connection.h"
#include "rpc/channel.h"

namespace recua::rpc {

/// ring: what the receiver said in the handshake. Session and epoch are those of each message.
std::unique_ptr<ChannelSender> make_tcp_sender(std::unique_ptr<net::Connection> connection,
                                               RingShape ring);

/// memory: the ring, at least n_slots * slot_bytes, slot k at k * slot_bytes; it outlives the
/// receiver. Rows start 64 bytes into a slot. kInvalidArgument: too little memory, or no room for a
/// header.
Result<std::unique_ptr<ChannelReceiver>> make_tcp_receiver(
    std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
    std::span<std::byte> memory);

}  // namespace recua::rpc
