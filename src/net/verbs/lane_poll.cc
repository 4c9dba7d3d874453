// Completions and events: what is done, what arrived, and why the lane ended.
#include <array>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/lane_state.h"

namespace recua::net::verbs {
namespace {

/// How often a lane that is polled without sleeping looks at its device's events.
constexpr std::uint32_t kPollsPerLook = 1024;

std::uint32_t load(const std::byte* in) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= std::to_integer<std::uint32_t>(in[i]) << (8 * i);
  return value;
}

}  // namespace

void Lane::State::fail(ErrorCode code, std::string_view why, bool by_flush) {
  if (failure && (!failed_by_flush || by_flush)) return;
  failure = Error{code, fmt::format("{}: {}", name, why)};
  failed_by_flush = by_flush;
}

void Lane::State::take_send(const Completion& completion) {
  requests_done = completion.wr_id + 1;
  while (writes_done < writes_posted &&
         write_ends[writes_done % write_ends.size()] <= requests_done) {
    ++writes_done;
  }
}

bool Lane::State::take_receive(const Completion& completion,
                               std::vector<Announcement>& announcements) {
  --receives_posted;
  if (completion.kind == CompletionKind::kReceiveImmediate) {
    announcements.push_back(
        {.value = completion.immediate, .bytes = completion.bytes, .has_bytes = true});
    return true;
  }
  if (completion.bytes != kAnnounceBytes) {
    fail(ErrorCode::kProtocol, fmt::format("the peer sent an announcement of {} bytes, need {}",
                                           completion.bytes, kAnnounceBytes));
    return false;
  }
  const std::uint64_t cell = completion.wr_id & ~kReceiveBit;
  announcements.push_back({.value = load(cells.data() + cell * kCellBytes)});
  return true;
}

void Lane::State::take_failed(const Completion& completion) {
  const bool is_receive = (completion.wr_id & kReceiveBit) != 0;
  if (is_receive) {
    --receives_posted;
  } else if (completion.wr_id == kMarker) {
    marker_is_back = true;
  }
  const bool is_flush = completion.status == Status::kFlushed;
  if (is_flush && (failure || is_fenced)) return;
  // The card knows more than that: it says in an event why it gave the queue pair up.
  if (is_flush) take_events();
  std::string why(to_string(completion.status));
  if (is_receive) why = fmt::format("receiving: {}", why);
  if (completion.vendor_error != 0)
    why += fmt::format(" (vendor error {:#x})", completion.vendor_error);
  const bool is_too_long = is_receive && completion.status == Status::kLocalLength;
  fail(is_too_long ? ErrorCode::kProtocol : ErrorCode::kUnavailable, why, is_flush);
}

/// Takes one batch of completions; how many there were.
std::size_t Lane::State::take(std::vector<Announcement>& announcements) {
  ++counters.polls;
  auto taken = queue->poll(batch);
  if (!taken.ok()) {
    queue_is_broken = true;
    fail(ErrorCode::kUnavailable, taken.error().message);
    return 0;
  }
  const std::size_t n = *taken;
  std::size_t n_again = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Completion& completion = batch[i];
    if (completion.status != Status::kSuccess) {
      take_failed(completion);
    } else if ((completion.wr_id & kReceiveBit) == 0) {
      take_send(completion);
    } else if (take_receive(completion, announcements)) {
      again[n_again++] = receive(completion.wr_id & ~kReceiveBit);
    }
  }
  counters.completions += n;
  if (n_again > 0 && !failure && !is_fenced) {
    if (auto posted = post_receives({again.data(), n_again}); !posted.ok())
      fail(ErrorCode::kUnavailable, posted.error().message);
  }
  return n;
}

bool Lane::poll(std::vector<Announcement>& announcements) {
  State& state = *state_;
  const bool look = state.on_event.take() || (state.event_wait && state.event_wait->take()) ||
                    ++state.n_polls % kPollsPerLook == 0;
  const bool had_failed = state.failure.has_value();
  const bool had_connected = state.is_connected;
  if (!had_connected && !had_failed) state.advance_cm();
  // A peer that announces without pause must not keep the caller here.
  const std::size_t n_max = state.options.send_depth + state.options.receive_depth;
  std::size_t n_taken = 0;
  while (n_taken <= n_max) {
    const std::size_t n = state.take(announcements);
    n_taken += n;
    if (n < kBatch) break;
  }
  // After the completions, which may be the last ones: an event often says that all is over.
  if (look) poll_events();
  return n_taken > 0 || state.failure.has_value() != had_failed ||
         state.is_connected != had_connected;
}

void Lane::State::take_event(const DeviceEvent& event) {
  const std::string_view words = event.text.empty() ? to_string(event.kind) : event.text;
  const bool is_our_port = event.port == port.port.number;
  const bool is_our_pair = event.qp_number == local.qp_number;
  switch (event.kind) {
    case EventKind::kPortError:
      if (is_our_port) fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kGidChange: {
      PortInfo now;
      if (!is_our_port) break;
      if (auto checked = check_port(now); !checked.ok())
        fail(ErrorCode::kUnavailable, checked.error().message);
      break;
    }
    case EventKind::kDeviceFatal:
      fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kQueuePairFatal:
      if (is_our_pair) fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kAccessViolation:
      if (is_our_pair) {
        fail(ErrorCode::kProtocol,
             fmt::format("the peer wrote outside of its window of {} bytes or without the right "
                         "key ({})",
                         local.window_bytes, words));
      }
      break;
    case EventKind::kPortActive:
    case EventKind::kOther:
      break;
  }
}

void Lane::State::take_events() {
  while (const std::optional<DeviceEvent> event = device->poll_event()) take_event(*event);
}

void Lane::poll_events() {
  state_->take_events();
  if (state_->cm != nullptr) state_->advance_cm();
}

void Lane::arm(const asio::any_io_executor& executor, const ReadyCallback& ready,
               bool for_completions) {
  if (for_completions) state_->queue->arm(executor, ready);
  const ReadyCallback& noting = state_->on_event.through(ready);
  state_->device->arm_events(executor, noting);
  if (state_->cm_listener != nullptr) state_->cm_listener->arm(executor, noting);
  if (state_->cm != nullptr) state_->cm->arm(executor, noting);
}

bool Lane::arm_in(const WaitSet& set, bool for_completions) {
  State& state = *state_;
  // rdma_cm's events come by descriptors of its own, and matter less often.
  if (state.cm_listener != nullptr || state.cm != nullptr) return false;
  if (!state.queue->arm_in(set, for_completions)) return false;
  if (!state.event_wait) state.event_wait.emplace(state.device->event_descriptor());
  return state.event_wait->join(set);
}

void Lane::leave_set() {
  state_->queue->leave_set();
  if (state_->event_wait) state_->event_wait->leave();
}

void Lane::give_up_waits() {
  leave_set();
  // From here on the card refuses what the peer writes.
  if (!state_->is_fenced && state_->pair != nullptr) (void)state_->pair->set_error();
  state_->cm_listener.reset();
  state_->cm.reset();
  state_->queue->give_up_waits();
  state_->on_event = {};
  state_->device->give_up_waits();
}

}  // namespace recua::net::verbs
