#pragma once
/// What links read from their connection: messages, whose bodies go straight into slots, credits
/// and records.
///
/// A stream of equal messages costs one call each: as many bytes as the next message will probably
/// have are read to where it will probably belong, into one piece of memory, which Linux fills by a
/// twentieth faster than two. What was guessed wrong is copied over. Threads: one at a time.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/channel.h"
#include "rpc/link_record.h"

namespace recua::rpc {

class StreamReader {
 public:
  enum class Item {
    kNothing,  // The connection has no more bytes now.
    kHead,     // header() is a message's: call begin_body(), then poll() again.
    kMessage,  // The body is complete.
    kCredit,   // n_released() is.
    kRecord,   // record() and payload() are.
  };

  /// Before the first of several polls: the connection may have bytes again.
  void begin() { exhausted_ = false; }
  /// guess: where the next message probably goes, head and body, as long as it probably is; empty:
  /// do not guess. messages: the counters of those that may come, or null. kProtocol: no head of
  /// any kind.
  Result<Item> poll(net::Connection& connection, std::span<std::byte> guess,
                    ChannelCounters* messages, ChannelCounters& counters);

  [[nodiscard]] const TensorHeader& header() const { return header_; }
  void begin_body(std::span<std::byte> body, ChannelCounters& counters);
  [[nodiscard]] std::uint64_t n_released() const { return n_released_; }
  [[nodiscard]] RecordKind record() const { return record_.kind; }
  [[nodiscard]] std::span<const std::byte> payload() const { return payload_; }
  /// Whether an item has begun and is not complete.
  [[nodiscard]] bool in_item() const { return state_ != State::kHead || n_head_ > 0; }

 private:
  enum class State { kHead, kAwaitBody, kBody, kRecord };

  [[nodiscard]] bool has_surplus() const { return surplus_at_ < surplus_.size(); }
  Result<std::size_t> read(net::Connection& connection, std::span<std::byte> out,
                           ChannelCounters& counters);
  Result<Item> read_head(net::Connection& connection, std::span<std::byte> guess,
                         ChannelCounters* messages, ChannelCounters& counters);
  void put_back(std::size_t n_taken, ChannelCounters* messages);
  void set_surplus(std::span<const std::byte> of_head, std::span<const std::byte> of_guess,
                   ChannelCounters* messages);

  State state_ = State::kHead;
  std::array<std::byte, kTensorHeaderBytes> head_{};
  std::size_t n_head_ = 0;
  std::span<std::byte> early_;  // Bytes behind the head, where the guess put them.
  TensorHeader header_;
  std::span<std::byte> body_;
  std::size_t n_body_ = 0;
  std::uint64_t n_released_ = 0;
  RecordHeader record_;
  std::vector<std::byte> payload_;
  std::size_t n_payload_ = 0;
  std::vector<std::byte> surplus_;  // From surplus_at_ on bytes of later items, read already.
  std::size_t surplus_at_ = 0;
  bool exhausted_ = false;  // The last read found less than it asked for.
};

}  // namespace recua::rpc
