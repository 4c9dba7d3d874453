#pragma once
/// The slots of a channel's ring as the receiver sees them: which message lies in which, how much
/// of it has arrived, what was handed out and given back.
///
/// Every slot of the window [n_delivered, n_told + n_slots) is empty, partly filled or complete,
/// whatever fills it; messages are handed out in order. Errors: kProtocol, about what the peer did,
/// to be completed by its name ("{peer} announced ..."). Threads: one at a time.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "rpc/channel.h"
#include "rpc/fast_path.h"
#include "rpc/link.pb.h"
#include "rpc/ring_index.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {

class LinkWindow {
 public:
  /// memory: the ring's, n_slots * slot_bytes.
  LinkWindow(ChannelId id, RingShape ring, std::span<std::byte> memory)
      : id_(id), ring_(ring), index_(ring.n_slots), memory_(memory), slots_(ring.n_slots) {}

  [[nodiscard]] std::uint64_t n_delivered() const { return n_delivered_; }
  /// Whether the sender holds this message's slot as far as we know.
  [[nodiscard]] bool holds(std::uint64_t message) const {
    return message >= n_delivered_ && message < n_told_ + ring_.n_slots;
  }
  [[nodiscard]] std::span<std::byte> slot_bytes(std::uint64_t message) const {
    return memory_.subspan(index_(message) * static_cast<std::size_t>(ring_.slot_bytes),
                           static_cast<std::size_t>(ring_.slot_bytes));
  }
  /// Asks for the beginning of what has arrived, which another processor or a card has written: its
  /// lines come while its header is checked (8 KiB one way over shared memory: 0.9 of the time).
  /// Always as many lines: a loop that asks how many there are takes what is gained. (Past the ring
  /// it names memory that may not exist; a prefetch does not mind.)
  /// descriptor_at: where in its slot its descriptor probably lies.
  void prefetch(std::uint64_t message, std::size_t descriptor_at) const {
    const std::byte* const at = slot_bytes(message).data();
    __builtin_prefetch(at + descriptor_at);
#pragma GCC unroll 32
    for (std::size_t i = 0; i < 2048; i += 64) __builtin_prefetch(at + i);
  }
  /// The first message that is not complete; perhaps one whose slot the sender does not hold.
  [[nodiscard]] std::uint64_t first_missing() const {
    std::uint64_t next = n_delivered_;
    while (holds(next) && slot(next).complete) ++next;
    return next;
  }
  /// Whether nothing of a message that the sender may send has arrived.
  [[nodiscard]] bool is_empty(std::uint64_t message) const {
    return holds(message) && !slot(message).complete && slot(message).pieces == 0;
  }

  // ---- What arrives -----------------------------------------------------------------------------

  /// That a header is of this channel, of message `expected`, and fits into a slot.
  [[nodiscard]] Result<void> check(const TensorHeader& header, std::uint64_t expected) const {
    const bool fits = header.session == id_.session && header.epoch <= id_.epoch &&
                      header.sequence == expected && padded_bytes(header) <= ring_.slot_bytes;
    if (fits) return ok();
    return misfit(header, expected);
  }
  /// A message's header came by the connection, and is checked: where its body goes, whole, also
  /// if lanes that died had brought some of it.
  std::span<std::byte> begin_by_stream(const TensorHeader& header) {
    Slot& its = slot(header.sequence);
    its.by_stream = true;
    its.pieces = 0;
    its.n_arrived = 0;
    its.descriptor_copied = false;
    return slot_bytes(header.sequence)
        .subspan(kTensorHeaderBytes, padded_bytes(header) - kTensorHeaderBytes);
  }
  /// A piece came by a fast path. True: it was the last one that its message lacked.
  Result<bool> add_piece(const Arrival& arrival) {
    if (!holds(arrival.sequence)) return not_held(arrival);
    Slot& its = slot(arrival.sequence);
    const std::uint32_t bit = std::uint32_t{1} << arrival.piece;
    if (its.complete || its.by_stream || (its.pieces & bit) != 0) return false;  // A duplicate.
    if (its.n_arrived > 0 && its.n_pieces != arrival.n_pieces) {
      return cut_twice(arrival, its.n_pieces);
    }
    its.n_pieces = arrival.n_pieces;
    its.pieces |= bit;
    ++its.n_arrived;
    return its.n_arrived == its.n_pieces;
  }
  /// Where a message that came by a fast path has its descriptor: not in the slot, where a broken
  /// peer could still change it.
  std::vector<std::byte>& own_descriptor(std::uint64_t message) {
    slot(message).descriptor_copied = true;
    return slot(message).descriptor;
  }
  /// All of a message is there, and its header is checked.
  void complete(const TensorHeader& header) {
    Slot& its = slot(header.sequence);
    const std::span<std::byte> body = slot_bytes(header.sequence).subspan(kTensorHeaderBytes);
    const std::size_t rows_bytes = static_cast<std::size_t>(header.n_rows) * header.row_bytes;
    its.message.header = header;
    its.message.rows = body.first(rows_bytes);
    its.message.descriptor = its.descriptor_copied
                                 ? std::span<const std::byte>(its.descriptor)
                                 : body.subspan(rows_bytes, header.descriptor_bytes);
    its.message.slot = static_cast<std::uint32_t>(index_(header.sequence));
    its.complete = true;
    its.by_stream = false;
    n_spent_ = std::max(n_spent_, header.sequence + 1);
  }

  // ---- Out and back -----------------------------------------------------------------------------

  [[nodiscard]] bool has_next() const { return slot(n_delivered_).complete; }
  /// The next message if it is complete, or null. Those of an earlier epoch are passed over. It
  /// lies in the window until its slot is released.
  const Incoming* take() {
    while (has_next()) {
      Slot& next = slot(n_delivered_);
      ++n_delivered_;
      next.complete = false;
      next.n_arrived = 0;
      next.pieces = 0;
      if (next.message.header.epoch == id_.epoch) return &next.message;
      next.dropped = true;  // Its slot comes back when its turn is there.
      pass_dropped();
    }
    return nullptr;
  }
  /// Takes a slot back; false: it is another one's turn.
  bool release(std::uint32_t index) {
    if (n_released_ == n_delivered_ || index != index_(n_released_)) return false;
    ++n_released_;
    pass_dropped();
    return true;
  }

  /// Whether there is something to tell the sender.
  [[nodiscard]] bool has_untold() const { return n_released_ != n_told_; }
  /// Slots that the sender still has, as far as we know.
  [[nodiscard]] std::uint64_t n_left() const {
    const std::uint64_t n_spent = n_spent_ > n_told_ ? n_spent_ - n_told_ : 0;
    return ring_.n_slots - std::min<std::uint64_t>(n_spent, ring_.n_slots);
  }
  /// The number of slots given back since the channel began, which the sender is told now.
  std::uint64_t tell() { return n_told_ = n_released_; }
  /// What of the window has arrived, for a sender whose lanes were closed; tells it all.
  void tell(wire::LinkFenced& record);

 private:
  struct Slot {
    bool complete = false;
    bool dropped = false;
    bool by_stream = false;  // Is being read from the connection.
    std::uint8_t n_pieces = 0;
    std::uint8_t n_arrived = 0;
    std::uint32_t pieces = 0;           // Bits of those that have arrived.
    Incoming message;                   // Its header is checked; once complete.
    std::vector<std::byte> descriptor;  // Ours, not in the slot; of fast paths only.
    bool descriptor_copied = false;
  };

  [[nodiscard]] Slot& slot(std::uint64_t message) { return slots_[index_(message)]; }
  [[nodiscard]] const Slot& slot(std::uint64_t message) const { return slots_[index_(message)]; }

  /// Slots of dropped messages come back as soon as those before them have.
  void pass_dropped() {
    while (n_released_ < n_delivered_ && slot(n_released_).dropped) {
      slot(n_released_).dropped = false;
      ++n_released_;
    }
  }

  [[nodiscard]] Error misfit(const TensorHeader& header, std::uint64_t expected) const;
  [[nodiscard]] Error not_held(const Arrival& arrival) const;
  [[nodiscard]] static Error cut_twice(const Arrival& arrival, std::uint8_t n_pieces);

  ChannelId id_;
  RingShape ring_;
  RingIndex index_;
  std::span<std::byte> memory_;
  std::vector<Slot> slots_;  // Of message i: index_(i).

  // n_told_ <= n_released_ <= n_delivered_ <= n_spent_ <= n_told_ + n_slots.
  std::uint64_t n_delivered_ = 0;  // Handed out.
  std::uint64_t n_released_ = 0;
  std::uint64_t n_told_ = 0;   // Released, and the sender knows.
  std::uint64_t n_spent_ = 0;  // One past the latest that has arrived.
};

}  // namespace recua::rpc
