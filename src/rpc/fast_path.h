#pragma once
/// What a channel uses instead of its connection when both ends have something better: RDMA lanes
/// (verbs_path.h) or shared memory (shm_path.h). docs/protocol.md, "Fast paths".
///
/// A fast path writes whole messages into slots of the receiver's ring: message s goes to slot
/// s mod n_slots, from its start, or their rows alone where the receiver can tell the rest. It
/// knows nothing of records or recovery: link_sender.cc and link_receiver.cc do, and own one of
/// these while it works. Both sides are polled. A path may consist of several lanes; each may fail
/// alone. Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "net/wait_set.h"
#include "rpc/channel.h"

namespace recua::rpc {

/// One message on its way into its slot.
struct SlotWrite {
  std::uint64_t sequence = 0;
  std::span<const std::byte> head;  // The encoded header.
  std::span<const std::byte> rows;
  std::span<const std::byte> descriptor;
  bool starving = false;  // It took the last credit: the receiver is to wake us with the next one.
  bool flush = false;     // Its memory should be free again soon.
  bool wakes_later = false;  // As Outgoing's.

  [[nodiscard]] std::uint64_t bytes() const {
    return head.size() + rows.size() + descriptor.size();
  }
};

/// Lanes of a path as bits; bit 0 is its first.
using LaneMask = std::uint32_t;

class FastSender {
 public:
  FastSender() = default;
  FastSender(const FastSender&) = delete;
  FastSender& operator=(const FastSender&) = delete;
  virtual ~FastSender() = default;

  /// "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096", "shared memory"
  [[nodiscard]] virtual std::string description() const = 0;
  /// Whether post() may be used; poll() gets on with it. Lanes that rdma_cm connects take a while.
  [[nodiscard]] virtual bool ready() const { return true; }
  /// Starts writing. False when there is no room for it now: poll() and call again. The bytes stay
  /// untouched until is_complete(sequence). kResourceExhausted: this path cannot carry the message
  /// (rows in memory that is not registered), the connection can.
  virtual Result<bool> post(const SlotWrite& message) = 0;
  /// Takes in completions and credits. True when something moved.
  virtual bool poll() = 0;
  /// As ChannelSender's: whether all that was posted is noticed, and what makes it so.
  [[nodiscard]] virtual bool flushed() const { return true; }
  virtual void wake() {}
  /// Whether the message's source memory is free again.
  [[nodiscard]] virtual bool is_complete(std::uint64_t sequence) const = 0;
  /// Whether it is as soon as post() has returned.
  [[nodiscard]] virtual bool completes_at_once() const { return false; }
  /// Slots that the receiver gave back since the channel began, as it last told; unchecked.
  [[nodiscard]] virtual std::uint64_t n_released() const = 0;
  /// Lanes that failed and are not dropped yet, and why the first of them did.
  [[nodiscard]] virtual LaneMask failed_lanes() const { return 0; }
  [[nodiscard]] virtual LaneMask lanes() const { return 1; }  // Failed ones included.
  [[nodiscard]] virtual std::string failure() const { return {}; }
  /// Ends lanes: nothing of ours is read or written by them any more.
  virtual void drop_lanes(LaneMask lanes) = 0;
  /// After drop_lanes(): these pieces of the message have arrived. True when others were lost with
  /// a lane; post() then sends only those.
  virtual bool reopen(std::uint64_t sequence, std::uint32_t arrived_pieces) {
    static_cast<void>(sequence);
    static_cast<void>(arrived_pieces);
    return false;
  }

  /// Calls `ready` once from the executor's loop when poll() may find out about a failure, and, if
  /// for_progress, about completed messages or released slots.
  virtual void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready,
                   bool for_progress) = 0;
  /// The same for who waits in a set. False: only arm() will do.
  virtual bool arm_in(const net::WaitSet& /*set*/, bool /*for_progress*/) { return false; }
  /// Adds what this path did to the link's counters.
  virtual void add_to(ChannelCounters& counters) const = 0;
  /// The last call. True: to end may take long, and may be done on any thread (background_end.h).
  virtual bool give_up_waits() { return false; }
};

/// A message, or a piece of one, that lies in its slot.
struct Arrival {
  std::uint64_t sequence = 0;  // Its low 16 bits are the peer's word; checked by the receiver.
  std::uint8_t piece = 0;      // Which of n_pieces.
  std::uint8_t n_pieces = 1;
  bool starving = false;
  bool rows_alone = false;             // As PieceAnnouncement's.
  std::optional<std::uint64_t> bytes;  // That were written, where the transport tells.
};

class FastReceiver {
 public:
  FastReceiver() = default;
  FastReceiver(const FastReceiver&) = delete;
  FastReceiver& operator=(const FastReceiver&) = delete;
  virtual ~FastReceiver() = default;

  [[nodiscard]] virtual std::string description() const = 0;
  /// As ChannelReceiver's.
  [[nodiscard]] virtual bool is_quiet() const { return false; }
  /// Appends what has arrived, in the order of its lanes. n_expected is the oldest message that is
  /// not complete; sequence numbers are those within 2^15 of it. kProtocol: the peer broke the
  /// rules (bits that mean nothing, a write where it may not).
  virtual Result<bool> poll(std::uint64_t n_expected, std::vector<Arrival>& arrivals) = 0;
  /// Tells the sender how many slots were given back since the channel began; wake: it may sleep.
  virtual void tell_released(std::uint64_t n_released, bool wake) = 0;

  [[nodiscard]] virtual LaneMask failed_lanes() const { return 0; }
  [[nodiscard]] virtual LaneMask lanes() const { return 1; }
  [[nodiscard]] virtual std::string failure() const { return {}; }
  /// Ends lanes: nothing of the peer lands in the ring by them once it returns; what arrived before
  /// is appended.
  virtual Result<void> fence(LaneMask lanes, std::uint64_t n_expected,
                             std::vector<Arrival>& arrivals) = 0;

  virtual void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready) = 0;
  virtual bool arm_in(const net::WaitSet& /*set*/) { return false; }
  virtual void leave_set() {}
  virtual void add_to(ChannelCounters& counters) const = 0;
  virtual bool give_up_waits() { return false; }
};

}  // namespace recua::rpc
