#pragma once
/// What a channel's sender reads from its connection: credits, and records of its receiver.
/// Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/channel.h"
#include "rpc/link_record.h"

namespace recua::rpc {

class LinkInbox {
 public:
  enum class Item {
    kNothing,  // The connection has no more now.
    kCredit,   // n_released() is.
    kRecord,   // record() and payload() are, until the next call.
  };
  /// kProtocol: bytes that are neither, or a number of slots that goes backwards.
  Result<Item> next(net::Connection& connection, ChannelCounters& counters);

  [[nodiscard]] std::uint64_t n_released() const { return n_released_; }
  [[nodiscard]] RecordKind record() const { return record_.kind; }
  [[nodiscard]] std::span<const std::byte> payload() const {
    return std::span<const std::byte>(input_).subspan(at_ - record_.payload_bytes,
                                                      record_.payload_bytes);
  }

 private:
  Result<Item> parse(const std::string& peer);

  std::vector<std::byte> input_;
  std::size_t at_ = 0;      // Up to here it has been taken.
  bool exhausted_ = false;  // The last read found less than it asked for.
  RecordHeader record_;
  std::uint64_t n_released_ = 0;
};

}  // namespace recua::rpc
