#include "rpc/stream_writer.h"

#include <algorithm>
#include <array>
#include <utility>

namespace recua::rpc {
namespace {

constexpr std::size_t kItemsPerCall = 8;  // Gathered into one write.
constexpr std::size_t kPartsPerItem = 5;

}  // namespace

void StreamWriter::push_record(std::vector<std::byte> bytes) {
  items_.emplace_back().record = std::move(bytes);
}

void StreamWriter::push_credit(std::span<const std::byte> bytes) {
  auto at = items_.begin();
  if (at != items_.end() && n_written_ > 0) ++at;
  while (at != items_.end() && !at->is_message && !at->is_credit) ++at;
  if (at == items_.end() || !at->is_credit) at = items_.emplace(at);
  at->is_credit = true;
  at->record.assign(bytes.begin(), bytes.end());
}

void StreamWriter::push_message(std::uint64_t sequence, const Message& message) {
  Item& item = items_.emplace_back();
  item.is_message = true;
  item.sequence = sequence;
  item.message = message;
}

Result<bool> StreamWriter::flush(net::Connection& connection, ChannelCounters& counters) {
  bool moved = false;
  while (!items_.empty()) {
    std::array<std::span<const std::byte>, kPartsPerItem * kItemsPerCall> parts;
    std::size_t n_parts = 0;
    std::size_t n_bytes = 0;
    std::size_t skip = n_written_;  // Only the first item can be half written.
    const std::size_t n_items = std::min(items_.size(), kItemsPerCall);
    for (std::size_t i = 0; i < n_items; ++i) {
      const Item& item = items_[i];
      for (const std::span<const std::byte> part :
           {std::span<const std::byte>(item.record), item.message.head, item.message.rows,
            item.message.descriptor, item.message.padding}) {
        const std::size_t skipped = std::min(skip, part.size());
        skip -= skipped;
        if (part.size() == skipped) continue;
        parts[n_parts++] = part.subspan(skipped);
        n_bytes += part.size() - skipped;
      }
    }
    ++counters.system_calls;
    RECUA_ASSIGN_OR_RETURN(const std::size_t n,
                           connection.try_write(std::span(parts).first(n_parts)));
    moved = moved || n > 0;
    n_written_ += n;
    while (!items_.empty() && n_written_ >= items_.front().size()) {
      n_written_ -= items_.front().size();
      if (items_.front().is_message) finished_.push_back(items_.front().sequence);
      items_.pop_front();
    }
    if (n < n_bytes) break;
  }
  return moved;
}

}  // namespace recua::rpc
