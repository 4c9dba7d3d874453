#include "rpc/link_inbox.h"

#include <array>
#include <utility>

#include <fmt/format.h>

#include "rpc/tensor_header.h"

namespace recua::rpc {

/// The next whole item of what has been read.
Result<LinkInbox::Item> LinkInbox::parse(const std::string& peer) {
  static_assert(kCreditBytes == kRecordHeaderBytes);
  if (input_.size() - at_ < kCreditBytes) return Item::kNothing;
  const auto head = std::span<const std::byte>(input_).subspan(at_).first<kCreditBytes>();
  if (is_record(head)) {
    Result<RecordHeader> record = decode_record_header(head);
    if (!record.ok()) return std::move(record).error().within(peer);
    const std::size_t size = kRecordHeaderBytes + record->payload_bytes;
    if (input_.size() - at_ < size) return Item::kNothing;
    record_ = *record;
    at_ += size;
    return Item::kRecord;
  }
  Result<std::uint64_t> n_released = decode_credit(head);
  if (!n_released.ok()) return std::move(n_released).error().within(peer);
  if (*n_released < n_released_) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} says that it released {} slots; it had said {}", peer, *n_released,
                             n_released_)};
  }
  n_released_ = *n_released;
  at_ += kCreditBytes;
  return Item::kCredit;
}

Result<LinkInbox::Item> LinkInbox::next(net::Connection& connection, ChannelCounters& counters) {
  while (true) {
    RECUA_ASSIGN_OR_RETURN(const Item item, parse(connection.peer()));
    if (item != Item::kNothing) return item;
    input_.erase(input_.begin(), input_.begin() + static_cast<std::ptrdiff_t>(at_));
    at_ = 0;
    if (std::exchange(exhausted_, false)) return Item::kNothing;
    std::array<std::byte, 512> bytes;
    ++counters.system_calls;
    RECUA_ASSIGN_OR_RETURN(const std::size_t n, connection.try_read(bytes));
    if (n == 0) return Item::kNothing;
    exhausted_ = n < bytes.size();
    input_.insert(input_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

}  // namespace recua::rpc
