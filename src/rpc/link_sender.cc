// Messages on their way out, and what the receiver says of them.
#include "rpc/link_sender.h"

#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "rpc/handshake.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {
namespace {

/// A look at the connection costs a system call: rarely while nothing is expected there.
constexpr std::uint32_t kPollsPerStreamRead = 64;
/// How long lost messages may go unnoticed by a sender that sleeps.
constexpr net::Duration kWatchAfter = std::chrono::milliseconds(20);

}  // namespace

LinkSender::LinkSender(LinkContext context, std::shared_ptr<LinkStream> stream, RingShape ring,
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

const ChannelCounters& LinkSender::counters() const {
  shown_ = counters_;
  if (path_ != nullptr) path_->add_to(shown_);
  return shown_;
}

/// Part of its callers: collective/exchange.cc says why.
[[gnu::always_inline]] inline Result<bool> LinkSender::write() {
  if (stream_->is_idle()) return false;
  Result<bool> wrote = stream_->write(counters_);
  if (!wrote.ok()) return fail(std::move(wrote).error());
  return wrote;
}

Result<bool> LinkSender::try_send(const Outgoing& message) {
  if (failure_) return *failure_;
  const TensorHeader& header = message.header;
  const std::uint64_t bytes = message_bytes(header);
  RECUA_CHECK(message.rows.size() == std::uint64_t{header.n_rows} * header.row_bytes);
  RECUA_CHECK(message.descriptor.size() == header.descriptor_bytes);
  if (bytes > ring_.slot_bytes) {
    return Error{ErrorCode::kInvalidArgument,
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

Result<bool> LinkSender::poll() {
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
  if (retry_at_) consider_retry();
  const bool news = std::exchange(has_news_, false);
  return moved || wrote || news || n_completed() != completed_before ||
         outbox_.n_released() != released_before;
}

void LinkSender::arm(net::ReadyCallback ready, bool for_completions) {
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

bool LinkSender::arm_in(const net::WaitSet& set, bool for_completions) {
  // What a loop has to watch over: deadlines, an agreement under way.
  if (failure_ || deadline_ || !settled() || !stream_->arm_in(set)) return false;
  const bool waits = for_completions || credits() == 0 || !outbox_.all_handed_over();
  if (path_ != nullptr && !path_->arm_in(set, waits)) return false;
  ++counters_.sleeps;
  return true;
}

bool LinkSender::stream_is_due() {
  // With credits left, nothing that the receiver says is urgent.
  const bool is_quiet =
      path_ != nullptr || (state_ == State::kStream && credits() > 0 && !outbox_.starving());
  return !is_quiet || fencing_ != 0 || stream_->writes() || stream_->take_readable() ||
         ++n_polls_ % kPollsPerStreamRead == 0;
}

Error LinkSender::fail(Error error) {
  if (!failure_) carried_ = transport();
  failure_ = error;
  drop_path();
  stream_->close(error);
  return error;
}

void LinkSender::drop_path() {
  if (path_ == nullptr) return;
  path_->add_to(counters_);
  if (path_->give_up_waits()) ends_.take(std::move(path_));
  path_.reset();
  fencing_ = 0;
}

void LinkSender::report(const std::string& what) const {
  report_link(context_, context_.self, context_.other.empty() ? peer() : context_.other, what);
}

bool LinkSender::watch(const net::ReadyCallback& ready) {
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

Result<void> LinkSender::dispatch() {
  if (!settled()) return ok();
  Result<void> handed = outbox_.dispatch(path_.get());
  if (!handed.ok()) return fail(std::move(handed).error());
  return ok();
}

Result<void> LinkSender::take_released(std::uint64_t n_released, std::string_view how) {
  Result<void> taken = outbox_.take_released(n_released, peer(), how);
  if (!taken.ok()) return fail(std::move(taken).error());
  return ok();
}

Result<bool> LinkSender::read_stream() {
  Result<bool> read = stream_->read(counters_);
  if (!read.ok()) return fail(std::move(read).error());
  return read;
}

Result<void> LinkSender::take_credit(std::uint64_t n_released) {
  if (n_released < n_told_) {
    return fail(
        Error{ErrorCode::kProtocol, fmt::format("{} says that it released {} slots; it had said {}",
                                                peer(), n_released, n_told_)});
  }
  n_told_ = n_released;
  RECUA_RETURN_IF_ERROR(take_released(n_released, "says"));
  note_news();
  return ok();
}

Result<void> LinkSender::take_record(RecordKind kind, std::span<const std::byte> payload) {
  Result<void> taken = act_on(kind, payload);
  if (failure_) return *failure_;
  if (!taken.ok()) return fail(std::move(taken).error().within(peer()));
  RECUA_RETURN_IF_ERROR(dispatch());
  RECUA_RETURN_IF_ERROR(write());
  note_news();
  return ok();
}

void LinkSender::note_news() {
  has_news_ = true;
  outbox_.advance(path_.get());
}

Result<void> LinkSender::act_on(RecordKind kind, std::span<const std::byte> payload) {
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
  return Error{ErrorCode::kProtocol,
               fmt::format("link record of kind {} does not belong here", static_cast<int>(kind))};
}

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
