// A sender in one of five states: it has not begun, it has offered and waits for the answer, its
// lanes are being connected, it uses a fast path, or it writes to the connection. Messages wait in
// outbox_ until they are complete.
#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/log.h"
#include "net/deadline.h"
#include "rpc/background_end.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/link_negotiation.h"
#include "rpc/link_outbox.h"
#include "rpc/link_stream.h"
#include "rpc/tensor_header.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

/// A look at the connection costs a system call: rarely while nothing is expected there.
constexpr std::uint32_t kPollsPerStreamRead = 64;
/// How long lost messages may go unnoticed by a sender that sleeps.
constexpr net::Duration kWatchAfter = std::chrono::milliseconds(20);
/// A receiver that lives confirms a fence at once.
constexpr net::Duration kFenceTimeout = std::chrono::seconds(10);

class LinkSender final : public ChannelSender, private StreamSender {
 public:
  LinkSender(LinkContext context, std::shared_ptr<LinkStream> stream, RingShape ring,
             std::vector<std::span<std::byte>> sources, std::string no_links, bool pads)
      : context_(std::move(context)),
        stream_(std::move(stream)),
        ring_(ring),
        sources_(std::move(sources)),
        state_(no_links.empty() ? State::kStart : State::kStream),
        why_stream_(std::move(no_links)),
        outbox_(ring, pads, stream_->writer()) {
    stream_->join(*this);
    if (context_.policy != nullptr) {
      retry_delay_ = context_.policy->retry_min;
      if (state_ == State::kStream) report(fmt::format("tcp, because {}", why_stream_));
    }
  }
  ~LinkSender() override { stream_->leave(*this); }

  [[nodiscard]] const std::string& peer() const override { return stream_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return ring_; }
  [[nodiscard]] std::string transport() const override {
    if (failure_) return carried_;
    if (path_ != nullptr) return path_->description();
    return why_stream_.empty() ? "tcp" : fmt::format("tcp, because {}", why_stream_);
  }
  [[nodiscard]] bool settled() const override {
    return state_ == State::kFast || state_ == State::kStream;
  }
  [[nodiscard]] std::uint32_t credits() const override { return settled() ? outbox_.n_free() : 0; }
  [[nodiscard]] std::uint64_t n_sent() const override { return outbox_.n_sent(); }
  [[nodiscard]] std::uint64_t n_completed() const override { return outbox_.n_completed(); }
  [[nodiscard]] bool flushed() const override {
    return outbox_.all_handed_over() && !stream_->writes() && settled() &&
           (path_ == nullptr || path_->flushed());
  }
  [[nodiscard]] bool completes_at_once() const override {
    return path_ == nullptr || path_->completes_at_once();
  }
  [[nodiscard]] const ChannelCounters& counters() const override {
    shown_ = counters_;
    if (path_ != nullptr) path_->add_to(shown_);
    return shown_;
  }

  Result<bool> try_send(const Outgoing& message) override {
    if (failure_) return *failure_;
    const TensorHeader& header = message.header;
    const std::uint64_t bytes = message_bytes(header);
    RECUA_CHECK(message.rows.size() == std::uint64_t{header.n_rows} * header.row_bytes);
    RECUA_CHECK(message.descriptor.size() == header.descriptor_bytes);
    if (bytes > ring_.slot_bytes) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("a message of {} bytes ({} rows of {}, descriptor of {}) does not fit "
                      "into a slot of {} at {}",
                      bytes, header.n_rows, header.row_bytes, header.descriptor_bytes,
                      ring_.slot_bytes, peer())};
    }
    if (credits() == 0) return false;

    outbox_.push(message);
    ++counters_.messages;
    counters_.bytes += bytes;
    RECUA_RETURN_IF_ERROR(dispatch());
    RECUA_RETURN_IF_ERROR(write());
    outbox_.advance(path_.get());
    return true;
  }

  void wake() override {
    if (path_ != nullptr) path_->wake();
  }

  Result<bool> poll() override {
    if (failure_) return *failure_;
    const std::uint64_t completed_before = n_completed();
    const std::uint64_t released_before = outbox_.n_released();
    bool moved = false;
    if (state_ == State::kStart) {
      offer();
      moved = true;
    }
    if (stream_is_due()) {
      RECUA_ASSIGN_OR_RETURN(const bool read, read_stream());
      moved = moved || read;
    }
    if (path_ != nullptr) {
      moved = path_->poll() || moved;
      if (state_ == State::kConnecting) watch_connecting();
    }
    if (path_ != nullptr && state_ == State::kFast) {
      RECUA_RETURN_IF_ERROR(take_released(path_->n_released(), "wrote"));
      fence_failed_lanes();
    }
    if (deadline_) RECUA_RETURN_IF_ERROR(check_deadline());
    RECUA_RETURN_IF_ERROR(dispatch());
    RECUA_ASSIGN_OR_RETURN(const bool wrote, write());
    outbox_.advance(path_.get());
    consider_retry();
    const bool news = std::exchange(has_news_, false);
    return moved || wrote || news || n_completed() != completed_before ||
           outbox_.n_released() != released_before;
  }

  void arm(net::ReadyCallback ready, bool for_completions) override {
    ++counters_.sleeps;
    stream_->arm(ready);
    if (path_ != nullptr) {
      const bool waits =
          for_completions || credits() == 0 || !outbox_.all_handed_over() || watch(ready);
      path_->arm(context_.env.executor, ready, waits);
    }
    if (deadline_) {
      timer_ = context_.env.clock->start_timer(context_.env.executor, *deadline_, ready);
    }
  }

  bool arm_in(const net::WaitSet& set, bool for_completions) override {
    // What a loop has to watch over: deadlines, an agreement under way.
    if (failure_ || deadline_ || !settled() || !stream_->arm_in(set)) return false;
    const bool waits = for_completions || credits() == 0 || !outbox_.all_handed_over();
    if (path_ != nullptr && !path_->arm_in(set, waits)) return false;
    ++counters_.sleeps;
    return true;
  }

 private:
  enum class State { kStart, kOffered, kConnecting, kFast, kStream };
  [[nodiscard]] net::TimePoint now() const { return context_.env.clock->now(); }
  [[nodiscard]] bool stream_is_due() {
    // With credits left, nothing that the receiver says is urgent.
    const bool is_quiet =
        path_ != nullptr || (state_ == State::kStream && credits() > 0 && !outbox_.starving());
    return !is_quiet || fencing_ != 0 || stream_->writes() || stream_->take_readable() ||
           ++n_polls_ % kPollsPerStreamRead == 0;
  }

  Error fail(Error error) {
    if (!failure_) carried_ = transport();
    failure_ = error;
    drop_path();
    stream_->close(error);
    return error;
  }
  void drop_path() {
    if (path_ == nullptr) return;
    path_->add_to(counters_);
    if (path_->give_up_waits()) ends_.take(std::move(path_));
    path_.reset();
    fencing_ = 0;
  }
  void report(const std::string& what) const {
    const std::string& other = context_.other.empty() ? peer() : context_.other;
    const std::string line = fmt::format("link {}->{}: {}", context_.self, other, what);
    if (context_.report) {
      context_.report(line);
    } else {
      log_info("{}", line);
    }
  }

  /// A message that is lost completes with an error, which nobody hears of who does not wait for
  /// completions: look after a while. True: messages are overdue, so wait for them after all.
  bool watch(const net::ReadyCallback& ready) {
    if (n_completed() == n_sent()) return false;
    if (watch_timer_ != nullptr && !*watch_is_over_) return false;
    if (*watch_is_over_ && n_completed() < n_watched_) return true;
    *watch_is_over_ = false;
    n_watched_ = n_sent();
    watch_timer_ = context_.env.clock->start_timer(context_.env.executor, now() + kWatchAfter,
                                                   [over = watch_is_over_, ready] {
                                                     *over = true;
                                                     ready();
                                                   });
    return false;
  }

  // ---- Moving messages ------------------------------------------------------------------------

  /// Hands waiting messages to whatever carries them now.
  Result<void> dispatch() {
    if (!settled()) return ok();
    Result<void> handed = outbox_.dispatch(path_.get());
    if (!handed.ok()) return fail(std::move(handed).error());
    return ok();
  }

  Result<bool> write() {
    Result<bool> wrote = stream_->write(counters_);
    if (!wrote.ok()) return fail(std::move(wrote).error());
    return wrote;
  }

  Result<void> take_released(std::uint64_t n_released, std::string_view how) {
    Result<void> taken = outbox_.take_released(n_released, peer(), how);
    if (!taken.ok()) return fail(std::move(taken).error());
    return ok();
  }

  // ---- What the receiver says on the connection -------------------------------------------------

  Result<bool> read_stream() {
    Result<bool> read = stream_->read(counters_);
    if (!read.ok()) return fail(std::move(read).error());
    return read;
  }

  Result<void> take_credit(std::uint64_t n_released) override {
    if (n_released < n_told_) {
      return fail(Error{ErrorCode::kProtocol,
                        fmt::format("{} says that it released {} slots; it had said {}", peer(),
                                    n_released, n_told_)});
    }
    n_told_ = n_released;
    RECUA_RETURN_IF_ERROR(take_released(n_released, "says"));
    note_news();
    return ok();
  }

  /// What follows from a record goes out at once: the other link of the connection may have read it
  /// after this one's last poll().
  Result<void> take_record(RecordKind kind, std::span<const std::byte> payload) override {
    Result<void> taken = act_on(kind, payload);
    if (failure_) return *failure_;
    if (!taken.ok()) return fail(std::move(taken).error().within(peer()));
    RECUA_RETURN_IF_ERROR(dispatch());
    RECUA_RETURN_IF_ERROR(write());
    note_news();
    return ok();
  }

  /// The connection's other link may have read it, long before the next poll().
  void note_news() {
    has_news_ = true;
    outbox_.advance(path_.get());
  }

  Result<void> act_on(RecordKind kind, std::span<const std::byte> payload) {
    if (kind == RecordKind::kAnswer) {
      wire::LinkAnswer answer;
      RECUA_RETURN_IF_ERROR(parse_record(payload, peer(), answer));
      return take_answer(answer);
    }
    if (kind == RecordKind::kFenced) {
      wire::LinkFenced fenced;
      RECUA_RETURN_IF_ERROR(parse_record(payload, peer(), fenced));
      return take_fenced(fenced);
    }
    return Error{ErrorCode::kProtocol, fmt::format("link record of kind {} does not belong here",
                                                   static_cast<int>(kind))};
  }

  // ---- Agreeing on a path -----------------------------------------------------------------------

  void offer() {
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

  void settle_on_stream(const std::string& why, bool temporary) {
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

  void plan_retry(bool temporary) {
    retry_at_.reset();
    if (!temporary) return;
    // A path that has worked for long has earned a quick second chance.
    if (now() - path_since_ > context_.policy->retry_max) retry_delay_ = context_.policy->retry_min;
    retry_at_ = now() + retry_delay_;
    retry_delay_ = std::min(2 * retry_delay_, context_.policy->retry_max);
  }

  /// RDMA may be back, or a port of it. Messages under way are no hindrance: those on the
  /// connection arrive before the offer, those on lanes are sorted out by the fence.
  void consider_retry() {
    if (!retry_at_ || fencing_ != 0 || now() < *retry_at_) return;
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

  Result<void> take_answer(const wire::LinkAnswer& answer) {
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

  void say_ready(const std::string& error) {
    wire::LinkReady ready;
    ready.set_generation(generation_);
    ready.set_error(wire_text(error, kReasonBytesMax));
    outbox_.push_record(encode_record(RecordKind::kReady, ready));
  }

  void use_path() {
    say_ready({});
    deadline_.reset();
    path_since_ = now();
    state_ = State::kFast;
    why_stream_.clear();
    const std::string description = path_->description();
    if (std::exchange(planned_from_, {}) != description) report(description);
  }

  void give_up_connecting(const std::string& why) {
    drop_path();
    say_ready(why);
    settle_on_stream("this end " + why, true);
  }

  /// Lanes that rdma_cm connects are not there at once.
  void watch_connecting() {
    if (path_->failed_lanes() == path_->lanes()) {
      give_up_connecting("cannot use RDMA: " + path_->failure());
    } else if (path_->ready()) {
      use_path();
    }
  }

  // ---- When lanes fail --------------------------------------------------------------------------

  void fence_failed_lanes() {
    const LaneMask failed = path_->failed_lanes() & ~fencing_;
    if (failed != 0) fence(failed, path_->failure());
  }

  void fence(LaneMask lanes, const std::string& reason, bool planned = false) {
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

  Result<void> check_deadline() {
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

  Result<void> take_fenced(const wire::LinkFenced& fenced) {
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

  LinkContext context_;
  std::shared_ptr<LinkStream> stream_;
  RingShape ring_;
  std::vector<std::span<std::byte>> sources_;
  State state_;
  std::string why_stream_;

  LinkOutbox outbox_;
  std::uint64_t n_told_ = 0;  // By the last credit.
  bool has_news_ = false;     // The receiver has said something since the last poll().
  std::uint32_t n_polls_ = 0;

  std::uint32_t generation_ = 0;
  std::optional<LinkProposal> proposal_;
  std::unique_ptr<FastSender> path_;
  LaneMask fencing_ = 0;  // Lanes whose end the receiver has not confirmed yet.
  std::string fence_reason_;
  std::string planned_from_;  // What is being replaced though it works, for ports that are back.
  bool shared_memory_failed_ = false;
  bool gave_up_waiting_ = false;
  std::optional<net::TimePoint> deadline_;  // Of the answer, or of the confirmation.
  std::optional<net::TimePoint> retry_at_;
  net::Duration retry_delay_{};
  net::TimePoint path_since_{};
  std::unique_ptr<net::Timer> timer_;
  std::unique_ptr<net::Timer> watch_timer_;
  std::shared_ptr<bool> watch_is_over_ = std::make_shared<bool>(false);
  std::uint64_t n_watched_ = 0;  // What watch_timer_ was started for: messages before this one.

  ChannelCounters counters_;
  mutable ChannelCounters shown_;
  std::optional<Error> failure_;
  std::string carried_;  // What transport() was when the channel broke.
  BackgroundEnd ends_;   // Of paths; before all that they refer to.
};

}  // namespace

std::unique_ptr<ChannelSender> make_link_sender(LinkContext context,
                                                std::shared_ptr<LinkStream> stream, RingShape ring,
                                                std::vector<std::span<std::byte>> sources,
                                                std::span<const std::uint32_t> peer_features) {
  RECUA_CHECK(ring.n_slots > 0);
  std::string no_links;
  if (context.policy == nullptr) {
    no_links = "nothing else was asked for";
  } else if (!has_feature(peer_features, Feature::kLinks)) {
    no_links = "the peer is an older recua that knows nothing else";
  }
  return std::make_unique<LinkSender>(std::move(context), std::move(stream), ring,
                                      std::move(sources), std::move(no_links),
                                      has_feature(peer_features, Feature::kPadding));
}

}  // namespace recua::rpc
