#include "rpc/link_outbox.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {

void LinkOutbox::push(const Outgoing& message) {
  RECUA_CHECK(n_sent_ - n_completed_ < entries_.size());
  Entry& entry = this->entry(n_sent_);
  entry.head = encode(message.header, n_sent_, message.starving);
  entry.rows = message.rows;
  entry.descriptor = message.descriptor;
  entry.carrier = Carrier::kNone;
  entry.done = false;
  entry.flush = message.header.last || message.flush;
  entry.wakes_later = message.wakes_later;
  ++n_sent_;
  starving_ = message.starving;
  entry.starving = n_free() == 0 || starving_;
}

Result<void> LinkOutbox::dispatch(FastSender* path) {
  if (n_reopened_ > 0) RECUA_RETURN_IF_ERROR(resend(path));
  while (n_dispatched_ < n_sent_) {
    RECUA_ASSIGN_OR_RETURN(const bool taken, hand_over(n_dispatched_, path));
    if (!taken) break;
    ++n_dispatched_;
  }
  return ok();
}

SlotWrite LinkOutbox::slot_write(std::uint64_t sequence) {
  const Entry& from = entry(sequence);
  return {.sequence = sequence,
          .head = from.head,
          .rows = from.rows,
          .descriptor = from.descriptor,
          .starving = from.starving,
          .flush = from.flush,
          .wakes_later = from.wakes_later};
}

Result<bool> LinkOutbox::hand_over(std::uint64_t sequence, FastSender* path) {
  if (path != nullptr) {
    Result<bool> posted = path->post(slot_write(sequence));
    if (posted.ok()) {
      if (*posted) entry(sequence).carrier = Carrier::kFast;
      return posted;
    }
    if (posted.error().code != ErrorCode::kResourceExhausted) return posted;
  }
  write_to_stream(sequence);
  return true;
}

void LinkOutbox::write_to_stream(std::uint64_t sequence) {
  Entry& message = entry(sequence);
  message.carrier = Carrier::kStream;
  message.reopened = false;
  static constexpr std::array<std::byte, kPaddedBytes> kPadding{};
  const std::uint64_t bytes = message.head.size() + message.rows.size() + message.descriptor.size();
  const std::uint64_t padding = padded_bytes_ > bytes ? padded_bytes_ - bytes : 0;
  set_padding(message.head, static_cast<std::uint16_t>(padding));
  writer_.push_message(sequence, {.head = message.head,
                                  .rows = message.rows,
                                  .descriptor = message.descriptor,
                                  .padding = std::span(kPadding).first(padding)});
}

/// Sends again what lanes took along when they died.
Result<void> LinkOutbox::resend(FastSender* path) {
  for (std::uint64_t i = n_completed_; i < n_dispatched_; ++i) {
    Entry& message = entry(i);
    if (!message.reopened) continue;
    RECUA_ASSIGN_OR_RETURN(const bool taken, hand_over(i, path));
    if (!taken) return ok();
    message.reopened = false;
    --n_reopened_;
  }
  return ok();
}

void LinkOutbox::note_written() {
  for (const std::uint64_t sequence : writer_.finished()) entry(sequence).done = true;
  writer_.finished().clear();
}

void LinkOutbox::advance(const FastSender* path) {
  note_written();
  while (n_completed_ < n_dispatched_) {
    Entry& oldest = entry(n_completed_);
    const bool is_fast = oldest.carrier == Carrier::kFast;
    const bool released = is_fast && n_completed_ < n_released_;
    const bool over = is_fast && path != nullptr && path->is_complete(n_completed_);
    if (!oldest.done && !released && !over) return;
    if (std::exchange(oldest.reopened, false)) --n_reopened_;
    ++n_completed_;
  }
}

/// Only what has been handed over can have come back, and of the stream only what has left.
Result<void> LinkOutbox::take_released(std::uint64_t n_released, std::string_view peer,
                                       std::string_view how) {
  if (n_released <= n_released_) return ok();
  note_written();
  bool honest = n_released <= n_dispatched_;
  for (std::uint64_t i = std::max(n_released_, n_completed_); honest && i < n_released; ++i) {
    honest = entry(i).carrier == Carrier::kFast || entry(i).done;
  }
  if (!honest) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} {} that it released {} slots; it was sent {} messages and had "
                             "released {}",
                             peer, how, n_released, n_completed_, n_released_)};
  }
  n_released_ = n_released;
  starving_ = false;
  return ok();
}

Result<void> LinkOutbox::check(const wire::LinkFenced& fenced) const {
  if (fenced.n_complete() <= n_dispatched_ && fenced.n_released() <= fenced.n_complete() &&
      fenced.outstanding_size() <= static_cast<int>(entries_.size())) {
    return ok();
  }
  return Error{
      ErrorCode::kProtocol,
      fmt::format("fenced with {} messages complete, {} released and {} begun; it was sent {}",
                  fenced.n_complete(), fenced.n_released(), fenced.outstanding_size(),
                  n_dispatched_)};
}

void LinkOutbox::reopen(const wire::LinkFenced& fenced, FastSender& path,
                        ChannelCounters& counters) {
  const bool any_left = path.lanes() != 0;
  for (std::uint64_t i = n_completed_; i < n_dispatched_; ++i) {
    Entry& message = entry(i);
    if (message.carrier != Carrier::kFast || message.done) continue;
    std::uint32_t arrived = 0;
    for (const wire::Outstanding& each : fenced.outstanding()) {
      if (each.sequence() == i) arrived = each.pieces();
    }
    if (i < fenced.n_complete()) arrived = ~std::uint32_t{0};
    if (!path.reopen(i, arrived)) {
      if (!any_left) message.done = true;
      continue;
    }
    ++counters.resent;
    if (any_left) {
      if (!std::exchange(message.reopened, true)) ++n_reopened_;
    } else {
      if (message.reopened) --n_reopened_;
      write_to_stream(i);
    }
  }
}

}  // namespace recua::rpc
