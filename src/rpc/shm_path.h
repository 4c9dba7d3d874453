#pragma once
/// The fast path between two processes of one host: the sender maps the receiver's ring and copies
/// each message into its slot itself. That one copy is the transport, as a card's DMA is: nothing
/// else is copied on either side, and the source is free again when post() returns.
///
/// Next to the ring lies a control page, a sealed memfd of its own that the receiver makes for each
/// path: what the ring is, the two counters n_published (messages) and n_released (slots), and a
/// bell (net/shm/bell.h) for each direction. The counters are absolute, from the channel's
/// beginning. A path may begin in the middle of a channel's life: the sender writes the sequence of
/// its first message (`first`) before it publishes that, and from there on there are no gaps.
///
/// The peer may change any shared word at any time: each is loaded once and checked. It may also
/// write into the ring after fence(), for a mapping cannot be taken back. An honest sender does no
/// harm by it: it may only write slots that it holds, and messages are sent again by another
/// transport only by the same thread, which has ended its copy then.
///
/// Threads: one at a time per object; arm() starts a helper thread. A loop that one was armed for
/// outlives it.

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "rpc/channel.h"
#include "rpc/fast_path.h"

namespace recua::rpc {

/// What the receiver tells the sender over the connection: descriptors of process pid.
struct ShmAddress {
  std::int32_t pid = 0;
  std::int32_t ring_fd = -1;
  std::uint64_t ring_bytes = 0;
  std::int32_t control_fd = -1;
};

/// ring_fd: a descriptor of net::shm::SharedMemory that holds the ring from its start; it stays
/// open until the sender is connected. kInvalidArgument: it is none, or too small for the ring.
Result<std::unique_ptr<FastReceiver>> make_shm_receiver(RingShape ring, int ring_fd,
                                                        ShmAddress& out);

/// ring: as the channel's handshake told it. One sender per address. kUnavailable: the receiver's
/// memory cannot be reached from here, and what to do. kProtocol: it is not what the peer says.
Result<std::unique_ptr<FastSender>> make_shm_sender(RingShape ring, const ShmAddress& address);

}  // namespace recua::rpc
