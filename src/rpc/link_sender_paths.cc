// What carries the messages of a sender: agreeing on a path with the receiver, and what becomes of
// it when lanes fail or ports are back.
#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "net/deadline.h"
#include "rpc/link_sender.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

/// A receiver that lives confirms a fence at once.
constexpr net::Duration kFenceTimeout = std::chrono::seconds(10);

}  // namespace

void LinkSender::offer() {
  ++generation_;
  proposal_ = LinkProposal::prepare(context_, ring_, sources_, stream_->local_address(),
                                    outbox_.n_released(), generation_, !shared_memory_failed_);
  if (!proposal_->worth_offering()) {
    settle_on_stream("this end " + proposal_->none().reason, proposal_->none().temporary);
    return;
  }
  outbox_.push_record(proposal_->record());
  state_ = State::kOffered;
  deadline_ = now() + context_.policy->settle_timeout;
}

void LinkSender::settle_on_stream(const std::string& why, bool temporary) {
  proposal_.reset();
  deadline_.reset();
  state_ = State::kStream;
  planned_from_.clear();
  if (why_stream_ != why) {
    why_stream_ = why;
    report(fmt::format("tcp, because {}", why));
  }
  plan_retry(temporary);
}

void LinkSender::plan_retry(bool temporary) {
  retry_at_.reset();
  if (!temporary) return;
  // A path that has worked for long has earned a quick second chance.
  if (now() - path_since_ > context_.policy->retry_max) retry_delay_ = context_.policy->retry_min;
  retry_at_ = now() + retry_delay_;
  retry_delay_ = std::min(2 * retry_delay_, context_.policy->retry_max);
}

void LinkSender::consider_retry() {
  if (fencing_ != 0 || now() < *retry_at_) return;
  retry_at_.reset();
  if (state_ == State::kStream) {
    offer();
  } else if (state_ == State::kFast) {
    // Fewer lanes than there were. If a port is back, end the rest as well, then offer all again.
    NoLanes none;
    const auto ports = usable_ports(*context_.policy, stream_->local_address(), none);
    if (ports.size() <= static_cast<std::size_t>(std::popcount(path_->lanes()))) {
      plan_retry(true);
      return;
    }
    planned_from_ = path_->description();
    fence(path_->lanes(), {}, true);
  }
}

Result<void> LinkSender::take_answer(const wire::LinkAnswer& answer) {
  if (answer.generation() != generation_ || state_ != State::kOffered) {
    if (answer.generation() < generation_ || gave_up_waiting_) return ok();  // Too late.
    return Error{ErrorCode::kProtocol,
                 fmt::format("answered offer {}, which is not open", answer.generation())};
  }
  RECUA_ASSIGN_OR_RETURN(LinkProposal::Outcome outcome, std::move(*proposal_).take(answer));
  proposal_.reset();
  deadline_.reset();
  if (outcome.path == nullptr && outcome.error.empty()) {
    settle_on_stream(outcome.why, outcome.temporary);
    return ok();
  }
  if (outcome.path == nullptr) {
    say_ready(outcome.error);
    if (outcome.was_shared_memory) {
      shared_memory_failed_ = true;
      report("not shared memory, because this end " + outcome.error);
      offer();
      return ok();
    }
    settle_on_stream("this end " + outcome.error, outcome.temporary);
    return ok();
  }
  path_ = std::move(outcome.path);
  if (path_->ready()) {
    use_path();
  } else {
    state_ = State::kConnecting;
    deadline_ = now() + context_.policy->settle_timeout;
  }
  return ok();
}

void LinkSender::say_ready(const std::string& error) {
  wire::LinkReady ready;
  ready.set_generation(generation_);
  ready.set_error(wire_text(error, kReasonBytesMax));
  outbox_.push_record(encode_record(RecordKind::kReady, ready));
}

void LinkSender::use_path() {
  say_ready({});
  deadline_.reset();
  path_since_ = now();
  state_ = State::kFast;
  why_stream_.clear();
  const std::string description = path_->description();
  if (std::exchange(planned_from_, {}) != description) report(description);
}

void LinkSender::give_up_connecting(const std::string& why) {
  drop_path();
  say_ready(why);
  settle_on_stream("this end " + why, true);
}

void LinkSender::watch_connecting() {
  if (path_->failed_lanes() == path_->lanes()) {
    give_up_connecting("cannot use RDMA: " + path_->failure());
  } else if (path_->ready()) {
    use_path();
  }
}

void LinkSender::fence_failed_lanes() {
  const LaneMask failed = path_->failed_lanes() & ~fencing_;
  if (failed != 0) fence(failed, path_->failure());
}

void LinkSender::fence(LaneMask lanes, const std::string& reason, bool planned) {
  wire::LinkFence record;
  record.set_generation(generation_);
  record.set_lanes(lanes);
  record.set_reason(wire_text(reason, kReasonBytesMax));
  record.set_planned(planned);
  outbox_.push_record(encode_record(RecordKind::kFence, record));
  fencing_ |= lanes;
  fence_reason_ = reason;
  deadline_ = now() + kFenceTimeout;
}

Result<void> LinkSender::check_deadline() {
  if (now() < *deadline_) return ok();
  deadline_.reset();
  if (state_ == State::kOffered) {
    // Whatever it may have made ready for us is to go away; its answer is ignored.
    gave_up_waiting_ = true;
    say_ready("waited too long for the answer");
    settle_on_stream(fmt::format("the peer did not answer the offer within {}",
                                 net::to_string(context_.policy->settle_timeout)),
                     true);
    return ok();
  }
  if (state_ == State::kConnecting) {
    give_up_connecting(fmt::format("cannot use RDMA: rdma_cm did not connect within {}",
                                   net::to_string(context_.policy->settle_timeout)));
    return ok();
  }
  return fail(Error{ErrorCode::kTimeout,
                    fmt::format("{} did not confirm within {} that a failed link is closed ({})",
                                peer(), net::to_string(kFenceTimeout), fence_reason_)});
}

Result<void> LinkSender::take_fenced(const wire::LinkFenced& fenced) {
  if (fenced.generation() > generation_) {
    return Error{ErrorCode::kProtocol, fmt::format("fenced lanes of offer {}, the latest is {}",
                                                   fenced.generation(), generation_)};
  }
  if (fenced.generation() < generation_ || path_ == nullptr) return ok();
  const LaneMask lanes = fenced.lanes() & path_->lanes();
  if (lanes == 0) return ok();  // Both ends noticed; this is the second report.
  RECUA_RETURN_IF_ERROR(outbox_.check(fenced));
  RECUA_RETURN_IF_ERROR(take_released(fenced.n_released(), "says"));
  outbox_.advance(path_.get());
  const std::string reason =
      !fence_reason_.empty() ? std::exchange(fence_reason_, {})
                             : "the peer reports: " + wire_text(fenced.reason(), kReasonBytesMax);
  const std::string before = path_->description();
  if (planned_from_.empty()) ++counters_.failovers;
  path_->drop_lanes(lanes);
  fencing_ &= ~lanes;
  if (fencing_ == 0) deadline_.reset();
  outbox_.reopen(fenced, *path_, counters_);
  if (path_->lanes() != 0) {
    report(fmt::format("{} failed: {}; going on over {}", before, reason, path_->description()));
    plan_retry(true);
    return ok();
  }
  drop_path();
  state_ = State::kStream;
  if (!planned_from_.empty()) {
    offer();
    return ok();
  }
  why_stream_ = reason;
  report(fmt::format("{} failed: {}; going on over tcp", before, reason));
  plan_retry(true);
  return ok();
}

}  // namespace recua::rpc
