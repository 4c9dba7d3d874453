#pragma once
/// What a channel's sender still has of its messages: those that are not complete, whose bytes may
/// have to be sent again by something else, and what is to be written on the connection.
///
/// A message is handed to the fast path, or written to the stream where there is none or it cannot
/// carry the message. Threads: one at a time.

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "rpc/channel.h"
#include "rpc/fast_path.h"
#include "rpc/link_record.h"
#include "rpc/ring_index.h"
#include "rpc/stream_writer.h"

namespace recua::rpc {

class LinkOutbox {
 public:
  /// writer: of the link's stream. pads: the receiver knows padding.
  LinkOutbox(RingShape ring, bool pads, StreamWriter& writer)
      : writer_(writer),
        entries_(ring.n_slots),
        index_(ring.n_slots),
        padded_bytes_(pads ? std::min(ring.slot_bytes, kPaddedBytes) : 0) {}

  [[nodiscard]] std::uint64_t n_sent() const { return n_sent_; }
  [[nodiscard]] std::uint64_t n_completed() const { return n_completed_; }
  [[nodiscard]] std::uint64_t n_released() const { return n_released_; }
  /// Slots that no message has.
  [[nodiscard]] std::uint32_t n_free() const {
    return static_cast<std::uint32_t>(entries_.size() - (n_sent_ - n_released_));
  }
  /// Whether the last message asked for a slot, and none has come back since.
  [[nodiscard]] bool starving() const { return starving_; }
  /// Whether every message has been handed over, to a path that still works.
  [[nodiscard]] bool all_handed_over() const {
    return n_dispatched_ == n_sent_ && n_reopened_ == 0;
  }

  /// Takes a message; there is a free slot. Sets what the channel sets in its header.
  void push(const Outgoing& message);
  void push_record(std::vector<std::byte> bytes) { writer_.push_record(std::move(bytes)); }

  /// Hands waiting messages over, in order; path: null for the stream. What the path fails with.
  Result<void> dispatch(FastSender* path);
  /// Counts what has become complete, also of what the stream has written.
  void advance(const FastSender* path);
  /// The receiver `how` (says, wrote) that it gave back so many slots since the channel began.
  /// kProtocol: more than it can have; the sentence begins with the peer.
  Result<void> take_released(std::uint64_t n_released, std::string_view peer, std::string_view how);

  /// That what the peer says of lanes that it closed can be true. kProtocol.
  [[nodiscard]] Result<void> check(const wire::LinkFenced& fenced) const;
  /// Those lanes were dropped from the path: finds out what they took along, and plans to send it
  /// again, by the stream when no lane is left.
  void reopen(const wire::LinkFenced& fenced, FastSender& path, ChannelCounters& counters);

 private:
  /// Linux confirms each shorter segment within the read that empties its connection, if nothing
  /// goes the other way: a packet of its own, which costs more than to send these bytes.
  static constexpr std::uint64_t kPaddedBytes = 576;

  enum class Carrier : std::uint8_t { kNone, kFast, kStream };

  /// A message that is not complete.
  struct Entry {
    std::array<std::byte, kTensorHeaderBytes> head;
    std::span<const std::byte> rows;
    std::span<const std::byte> descriptor;
    Carrier carrier = Carrier::kNone;
    bool done = false;
    bool reopened = false;  // A lane took pieces of it along.
    bool starving = false;
    bool flush = false;
    bool wakes_later = false;
  };

  void note_written();
  [[nodiscard]] Entry& entry(std::uint64_t sequence) { return entries_[index_(sequence)]; }
  [[nodiscard]] SlotWrite slot_write(std::uint64_t sequence);
  Result<bool> hand_over(std::uint64_t sequence, FastSender* path);
  void write_to_stream(std::uint64_t sequence);
  Result<void> resend(FastSender* path);

  StreamWriter& writer_;
  // Message i in entries_[index_(i)]. n_completed_ <= n_dispatched_ <= n_sent_, and after advance()
  // n_released_ <= n_completed_.
  std::vector<Entry> entries_;
  RingIndex index_;
  std::uint64_t padded_bytes_;  // Shorter messages on the connection are made as long.
  std::uint64_t n_sent_ = 0;
  std::uint64_t n_dispatched_ = 0;  // Handed to the path or the stream.
  std::uint64_t n_completed_ = 0;
  std::uint64_t n_released_ = 0;
  bool starving_ = false;
  std::size_t n_reopened_ = 0;
};

}  // namespace recua::rpc
