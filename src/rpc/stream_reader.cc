#include "rpc/stream_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/sha256.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {
namespace {

Error no_message(std::span<const std::byte> head) {
  return {ErrorCode::kProtocol,
          fmt::format("sent {} where a credit (52434352, RCCR) or a link record (52434c52, RCLR) "
                      "begins",
                      to_hex(head.first(4)))};
}

}  // namespace

/// From what was read too far first, then from the connection. Part of its callers, as read_head()
/// is: after a system call each return takes long (collective/exchange.cc).
[[gnu::always_inline]] inline Result<std::size_t> StreamReader::read(net::Connection& connection,
                                                                     std::span<std::byte> out,
                                                                     ChannelCounters& counters) {
  if (has_surplus()) {
    const std::span<const std::byte> left = std::span(surplus_).subspan(surplus_at_);
    const std::size_t n = std::min(left.size(), out.size());
    std::copy_n(left.begin(), n, out.begin());
    surplus_at_ += n;
    return n;
  }
  ++counters.system_calls;
  RECUA_ASSIGN_OR_RETURN(const std::size_t n, connection.try_read(out));
  exhausted_ = n < out.size();
  return n;
}

/// What was read behind the first n_taken bytes of the head comes first again.
void StreamReader::put_back(std::size_t n_taken, ChannelCounters* messages) {
  const std::span<const std::byte> rest = std::span(head_).first(n_head_).subspan(n_taken);
  n_head_ = 0;
  if (has_surplus()) {  // Then the head came out of it.
    surplus_at_ -= rest.size();
    return;
  }
  set_surplus(rest, std::exchange(early_, {}), messages);
}

/// Nothing is left of the surplus before: next come these bytes. Copies of what was guessed are
/// counted.
void StreamReader::set_surplus(std::span<const std::byte> of_head,
                               std::span<const std::byte> of_guess, ChannelCounters* messages) {
  surplus_.assign(of_head.begin(), of_head.end());
  surplus_.insert(surplus_.end(), of_guess.begin(), of_guess.end());
  surplus_at_ = 0;
  if (of_guess.empty() || messages == nullptr) return;
  ++messages->payload_copies;
  messages->payload_bytes_copied += of_guess.size();
}

[[gnu::always_inline]] inline Result<StreamReader::Item> StreamReader::read_head(
    net::Connection& connection, std::span<std::byte> guess, ChannelCounters* messages,
    ChannelCounters& counters) {
  const std::span<std::byte> rest = std::span(head_).subspan(n_head_);
  const bool guesses = n_head_ == 0 && !has_surplus() && guess.size() > head_.size();
  RECUA_ASSIGN_OR_RETURN(const std::size_t n, read(connection, guesses ? guess : rest, counters));
  if (n == 0) return Item::kNothing;
  const std::size_t n_in_head = std::min(n, rest.size());
  if (guesses) {
    std::copy_n(guess.begin(), n_in_head, head_.begin());
    early_ = guess.first(n).subspan(n_in_head);
  }
  n_head_ += n_in_head;
  const std::span<const std::byte> head = std::span(head_).first(n_head_);
  if (n_head_ >= 4 && !is_record(head) && !is_credit(head)) {
    RECUA_RETURN_IF_ERROR(messages != nullptr ? check_magic(head) : no_message(head));
  }
  static_assert(kRecordHeaderBytes == kCreditBytes);
  if (n_head_ >= kCreditBytes && is_credit(head)) {
    RECUA_ASSIGN_OR_RETURN(n_released_, decode_credit(std::span(head_).first<kCreditBytes>()));
    put_back(kCreditBytes, messages);
    return Item::kCredit;
  }
  if (n_head_ >= kRecordHeaderBytes && is_record(head)) {
    RECUA_ASSIGN_OR_RETURN(record_,
                           decode_record_header(std::span(head_).first<kRecordHeaderBytes>()));
    put_back(kRecordHeaderBytes, messages);
    payload_.resize(record_.payload_bytes);
    n_payload_ = 0;
    state_ = State::kRecord;
    return Item::kRecord;
  }
  if (n_head_ < head_.size()) return Item::kNothing;
  RECUA_ASSIGN_OR_RETURN(header_, decode_tensor_header(head_));
  n_head_ = 0;
  state_ = State::kAwaitBody;
  return Item::kHead;
}

void StreamReader::begin_body(std::span<std::byte> body, ChannelCounters& counters) {
  RECUA_CHECK(state_ == State::kAwaitBody);
  state_ = State::kBody;
  body_ = body;
  n_body_ = 0;
  const std::span<std::byte> early = std::exchange(early_, {});
  if (early.empty()) return;
  if (early.data() == body.data()) n_body_ = std::min(early.size(), body.size());
  const std::span<std::byte> beyond = early.subspan(n_body_);
  if (!beyond.empty()) set_surplus({}, beyond, &counters);
}

Result<StreamReader::Item> StreamReader::poll(net::Connection& connection,
                                              std::span<std::byte> guess, ChannelCounters* messages,
                                              ChannelCounters& counters) {
  while (true) {
    if (state_ == State::kHead) {
      const bool may_guess = !has_surplus();
      if (may_guess && n_head_ == 0 && exhausted_) return Item::kNothing;
      RECUA_ASSIGN_OR_RETURN(
          const Item item,
          read_head(connection, may_guess ? guess : std::span<std::byte>(), messages, counters));
      if (item == Item::kNothing) {
        // Bytes that were left over may not have been enough; the connection may have more.
        if (may_guess || n_head_ == 0) return item;
        continue;
      }
      if (item != Item::kRecord) return item;
    }
    RECUA_CHECK(state_ != State::kAwaitBody);
    const bool is_body = state_ == State::kBody;
    const std::span<std::byte> whole = is_body ? body_ : std::span(payload_);
    std::size_t& n_done = is_body ? n_body_ : n_payload_;
    while (n_done < whole.size()) {
      RECUA_ASSIGN_OR_RETURN(const std::size_t n,
                             read(connection, whole.subspan(n_done), counters));
      if (n == 0) return Item::kNothing;
      n_done += n;
    }
    state_ = State::kHead;
    return is_body ? Item::kMessage : Item::kRecord;
  }
}

}  // namespace recua::rpc
