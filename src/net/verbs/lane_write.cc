// A write becomes work requests. This and lane_poll.cc are what runs for each message: nothing here
// allocates, and no words are made unless something is wrong.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/lane_state.h"

namespace recua::net::verbs {
namespace {

void store(std::byte* out, std::uint32_t value) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}

}  // namespace

const Lane::State::Source* Lane::State::find_source(std::span<const std::byte> part) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(part.data());
  for (const Source& source : sources) {
    const std::uintptr_t offset = begin - source.begin;  // Huge if it is before.
    if (offset < source.bytes && part.size() <= source.bytes - offset) return &source;
  }
  return nullptr;
}

/// Adds a part behind what is there, in as many requests as it takes. False: too many.
bool Lane::State::append(std::span<const std::byte> part, std::uint32_t lkey, bool is_inline) {
  while (!part.empty()) {
    const bool joins = !requests.empty() && room > 0 && requests.back().inline_data == is_inline &&
                       requests.back().segments.size() < segments_max;
    if (!joins) {
      if (requests.size() == options.send_depth / 2) return false;
      room = is_inline ? inline_bytes_max : piece_bytes_max;
      requests.push_back({.segments = {segments.data() + segments.size(), 0},
                          .remote_address = address,
                          .rkey = remote.window_rkey,
                          .inline_data = is_inline});
    }
    const std::size_t n = std::min<std::size_t>(room, part.size());
    segments.push_back({.data = part.data(), .bytes = static_cast<std::uint32_t>(n), .lkey = lkey});
    SendRequest& request = requests.back();
    request.segments = {request.segments.data(), request.segments.size() + 1};
    room -= n;
    address += n;
    part = part.subspan(n);
  }
  return true;
}

/// Fills `requests`. Registered parts are gathered; a short one that is not is written inline by a
/// request of its own before them, since inline is a property of a whole request.
Result<void> Lane::State::build(const Write& write, bool all_inline) {
  requests.clear();
  segments.clear();
  address = remote.window_address + write.offset;
  room = 0;
  bool fits = true;
  for (const std::span<const std::byte> part : write.parts) {
    if (part.empty()) continue;
    if (all_inline) {
      fits = fits && append(part, 0, true);
    } else if (const Source* source = find_source(part)) {
      fits = fits && append(part, source->lkey, false);
    } else if (part.size() <= inline_bytes_max) {
      fits = fits && append(part, 0, true);
    } else {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{}: a part of {} bytes lies in no registered memory, and only {} "
                               "fit into a request",
                               name, part.size(), inline_bytes_max)};
    }
  }
  if (requests.empty())
    requests.push_back({.segments = {}, .remote_address = address, .rkey = remote.window_rkey});
  if (write.announce) append_announcement(*write.announce);
  if (fits && requests.size() <= options.send_depth / 2) return ok();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{}: a write takes more than {} requests, half of the queue's depth, at "
                           "{} bytes each",
                           name, options.send_depth / 2, piece_bytes_max)};
}

void Lane::State::append_announcement(std::uint32_t value) {
  if (options.use_immediate) {
    requests.back().operation = Operation::kWriteImmediate;
    requests.back().immediate = value;
    return;
  }
  // What a SEND brings is there after all that was written before it on the same queue pair.
  const std::uint64_t number = requests_posted + requests.size();
  std::byte* cell =
      cells.data() + (options.receive_depth + number % options.send_depth) * kCellBytes;
  store(cell, value);
  segments.push_back({.data = cell, .bytes = kAnnounceBytes, .lkey = cell_region->lkey()});
  requests.push_back({.operation = Operation::kSend,
                      .segments = {&segments.back(), 1},
                      .inline_data = inline_bytes_max >= kAnnounceBytes});
}

/// Unsignaled requests give their places back only with a signaled one after them. At most half of
/// the queue is unsignaled, and a write takes at most the other half: so there is always room for
/// it once all completions are taken.
bool Lane::State::wants_signal(const Write& write) const {
  return write.signal || writes_unsignaled + 1 >= options.signal_every ||
         requests_unsignaled + requests.size() > options.send_depth / 2;
}

Result<bool> Lane::write(const Write& write, bool* was_inline) {
  State& state = *state_;
  if (state.failure) return *state.failure;
  if (!state.is_connected || state.is_fenced) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: the lane is {}", state.name,
                             state.is_fenced ? "closed" : "not connected yet")};
  }
  std::uint64_t bytes = 0;
  for (const std::span<const std::byte> part : write.parts) bytes += part.size();
  const std::uint64_t window_bytes = state.remote.window_bytes;
  if (write.offset > window_bytes || bytes > window_bytes - write.offset ||
      write.parts.size() > kPartsMax) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("{}: a write of {} bytes in {} parts at {} is outside of the window of "
                    "{} bytes or has more than {} parts",
                    state.name, bytes, write.parts.size(), write.offset, window_bytes, kPartsMax)};
  }
  const std::uint64_t n_free =
      state.options.send_depth - (state.requests_posted - state.requests_done);
  if (n_free == 0) return false;
  const bool all_inline = bytes <= state.inline_bytes_max;
  RECUA_RETURN_IF_ERROR(state.build(write, all_inline));
  const std::size_t n_requests = state.requests.size();
  if (n_requests > n_free) return false;

  for (std::size_t i = 0; i < n_requests; ++i) state.requests[i].wr_id = state.requests_posted + i;
  const bool is_signaled = state.wants_signal(write);
  state.requests.back().signaled = is_signaled;
  if (auto posted = state.pair->post_send(state.requests); !posted.ok()) {
    if (posted.error().code == ErrorCode::kResourceExhausted) return false;
    state.fail(ErrorCode::kUnavailable, posted.error().message);
    return *state.failure;
  }
  state.requests_posted += n_requests;
  state.write_ends[state.writes_posted % state.write_ends.size()] = state.requests_posted;
  ++state.writes_posted;
  state.requests_unsignaled = is_signaled ? 0 : state.requests_unsignaled + n_requests;
  state.writes_unsignaled = is_signaled ? 0 : state.writes_unsignaled + 1;
  ++state.counters.posts;
  state.counters.requests += n_requests;
  state.counters.signals += is_signaled ? 1 : 0;
  if (was_inline != nullptr) *was_inline = all_inline;
  return true;
}

}  // namespace recua::net::verbs
