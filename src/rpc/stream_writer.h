#pragma once
/// What a channel's sender has still to write on its connection: messages straight from the
/// caller's memory, and records of its own, in one order. Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/channel.h"

namespace recua::rpc {

class StreamWriter {
 public:
  void push_record(std::vector<std::byte> bytes);
  /// A credit goes before the messages that have not begun, whose receiver's sender may wait for
  /// it, and before records behind those; it replaces one that has not begun: the last says all.
  void push_credit(std::span<const std::byte> bytes);
  struct Message {
    std::span<const std::byte> head;
    std::span<const std::byte> rows;
    std::span<const std::byte> descriptor;
    std::span<const std::byte> padding;
  };
  /// The bytes stay untouched until finished() has named the sequence.
  void push_message(std::uint64_t sequence, const Message& message);

  [[nodiscard]] bool empty() const { return items_.empty(); }
  /// Writes as far as the connection takes it, several items per call. True when bytes left.
  Result<bool> flush(net::Connection& connection, ChannelCounters& counters);
  /// Messages written completely, in order; the caller clears it.
  [[nodiscard]] std::vector<std::uint64_t>& finished() { return finished_; }

 private:
  struct Item {
    std::vector<std::byte> record;  // Owned bytes of a record; empty for a message.
    bool is_message = false;
    bool is_credit = false;
    std::uint64_t sequence = 0;
    Message message;  // Empty for a record.

    [[nodiscard]] std::size_t size() const {
      return record.size() + message.head.size() + message.rows.size() + message.descriptor.size() +
             message.padding.size();
    }
  };

  std::deque<Item> items_;
  std::size_t n_written_ = 0;  // Of the first item.
  std::vector<std::uint64_t> finished_;
};

}  // namespace recua::rpc
