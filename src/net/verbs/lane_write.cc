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

/// Fills `requests`. Registered parts are gathered; a short one that is not is written inline by a
/// request of its own before them, since inline is a property of a whole request.
Result<void> Lane::State::build(const Write& write, bool all_inline) {
  // Room for an announcement is kept.
  const std::size_t n_requests_max = options.send_depth / 2 - 1;
  std::uint64_t address = remote.window_address + write.offset;
  std::uint64_t room = 0;          // Bytes that the newest request may still take,
  SendRequest* request = nullptr;  // which is this one.
  Segment* segment = segments.data();
  n_requests = 0;
  for (std::span<const std::byte> part : write.parts) {
    if (part.empty()) continue;
    std::uint32_t lkey = 0;
    bool is_inline = all_inline;
    if (!all_inline) {
      const Source* source = find_source(part);
      if (source != nullptr) {
        lkey = source->lkey;
      } else if (part.size() <= inline_bytes_max) {
        is_inline = true;
      } else {
        return unregistered(part.size());
      }
    }
    do {
      const bool joins =
          room > 0 && request->inline_data == is_inline && request->segments.size() < segments_max;
      if (!joins) {
        if (n_requests == n_requests_max) return too_long();
        room = is_inline ? inline_bytes_max : piece_bytes_max;
        request = &requests[n_requests++];
        *request = {.segments = {segment, 0},
                    .remote_address = address,
                    .rkey = remote.window_rkey,
                    .inline_data = is_inline};
      }
      const std::size_t n = std::min<std::size_t>(room, part.size());
      *segment++ = {.data = part.data(), .bytes = static_cast<std::uint32_t>(n), .lkey = lkey};
      request->segments = {request->segments.data(), request->segments.size() + 1};
      room -= n;
      address += n;
      part = part.subspan(n);
    } while (!part.empty());
  }
  if (n_requests == 0) {
    requests[n_requests++] = {
        .segments = {}, .remote_address = address, .rkey = remote.window_rkey};
  }
  if (write.announce) append_announcement(*write.announce, *segment);
  return ok();
}

Error Lane::State::unregistered(std::size_t bytes) const {
  return {ErrorCode::kInvalidArgument,
          fmt::format("{}: a part of {} bytes lies in no registered memory, and only {} fit into a "
                      "request",
                      name, bytes, inline_bytes_max)};
}

Error Lane::State::too_long() const {
  return {ErrorCode::kInvalidArgument,
          fmt::format("{}: a write takes more than {} requests at {} bytes each: half of the "
                      "queue's depth but one for the announcement",
                      name, options.send_depth / 2 - 1, piece_bytes_max)};
}

void Lane::State::append_announcement(std::uint32_t value, Segment& segment) {
  if (options.use_immediate) {
    SendRequest& last = requests[n_requests - 1];
    last.operation = Operation::kWriteImmediate;
    last.immediate = value;
    return;
  }
  // What a SEND brings is there after all that was written before it on the same queue pair.
  const std::uint64_t number = requests_posted + n_requests;
  std::byte* cell =
      cells.data() + (options.receive_depth + number % options.send_depth) * kCellBytes;
  store(cell, value);
  segment = {.data = cell, .bytes = kAnnounceBytes, .lkey = cell_region->lkey()};
  requests[n_requests++] = {.operation = Operation::kSend,
                            .segments = {&segment, 1},
                            .inline_data = inline_bytes_max >= kAnnounceBytes};
}

/// Unsignaled requests give their places back only with a signaled one after them. At most half of
/// the queue is unsignaled, and a write takes at most the other half: so there is always room for
/// it once all completions are taken.
bool Lane::State::wants_signal(const Write& write) const {
  return write.signal || writes_unsignaled + 1 >= options.signal_every ||
         requests_unsignaled + n_requests > options.send_depth / 2;
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
  const std::size_t n_requests = state.n_requests;
  if (n_requests > n_free) return false;

  for (std::size_t i = 0; i < n_requests; ++i) state.requests[i].wr_id = state.requests_posted + i;
  const bool is_signaled = state.wants_signal(write);
  state.requests[n_requests - 1].signaled = is_signaled;
  if (auto posted = state.pair->post_send({state.requests.data(), n_requests}); !posted.ok()) {
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
