#include "cluster/weights_push.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "cluster/chunks.h"
#include "cluster/poll_loop.h"
#include "cluster/weights_channel.h"
#include "quant/data_type.h"
#include "sys/aligned_buffer.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// One is filled while the others are on their way.
constexpr std::size_t kStagingBuffers = 3;

/// What became of a chunk; on the control loop.
struct Outcome {
  explicit Outcome(const asio::any_io_executor& executor) : decided(executor) {}
  std::optional<Result<void>> result;
  net::Event decided;
};

struct Job {
  std::uint64_t request = 0;
  std::span<const std::byte> bytes;
  std::shared_ptr<Outcome> outcome;
};

}  // namespace

/// What lives on the channel's own loop.
class WeightsPusher::Pump {
 public:
  Pump(asio::any_io_executor home, rpc::ChannelId id, sys::AlignedBuffer staging,
       std::uint64_t chunk_bytes_max)
      : home_(std::move(home)),
        id_(id),
        staging_(std::move(staging)),
        chunk_bytes_max_(chunk_bytes_max) {}

  [[nodiscard]] std::span<std::byte> memory() const { return staging_.bytes(); }
  void set_channel(std::unique_ptr<rpc::ChannelSender> out) { out_ = std::move(out); }

  void add(Job job) {
    if (failure_.has_value()) {
      finish(job, *failure_);
      return;
    }
    jobs_.push_back(std::move(job));
    wake();
  }

  /// Polls until the channel breaks or a requested stop.
  static asio::awaitable<Result<void>> drive(std::shared_ptr<Pump> self, net::Env env) {
    self->wake_ = std::make_shared<net::Event>(env.executor);
    std::function<Result<bool>()> poll_fn = [self] { return self->poll(); };
    const net::ReadyCallback ready = [wake = self->wake_] { wake->notify_all(); };
    std::function<void()> arm_fn = [self, ready] {
      self->out_->arm(ready, /*for_completions=*/true);
    };
    std::function<bool()> done_fn = [self] { return self->stop_requested_.load(); };
    const std::shared_ptr<net::Event> wake = self->wake_;
    Result<void> ended = co_await poll_until(env, *wake, poll_fn, arm_fn, done_fn);
    self->stats_.transport = self->out_->transport();
    self->stats_.counters = self->out_->counters();
    self->out_.reset();
    self->failure_ = ended.ok() ? Error{ErrorCode::kUnavailable, "the channel for weights ended"}
                                : ended.error();
    for (const Job& job : self->jobs_) self->finish(job, *self->failure_);
    self->jobs_.clear();
    co_return ended;
  }

  void request_stop() { stop_requested_ = true; }
  void wake() {
    if (wake_ != nullptr) wake_->notify_all();
  }
  [[nodiscard]] const rpc::LinkStats& stats() const { return stats_; }

 private:
  Result<bool> poll() {
    RECUA_ASSIGN_OR_RETURN(bool moved, out_->poll());
    while (!jobs_.empty() && out_->credits() > 0 &&
           out_->n_sent() - out_->n_completed() < kStagingBuffers) {
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      moved = true;
      if (job.bytes.size() > chunk_bytes_max_) {
        finish(job, Error{ErrorCode::kInvalidArgument,
                          fmt::format("a chunk of {} bytes does not fit the channel's slots of {}",
                                      job.bytes.size(), out_->ring().slot_bytes)});
        continue;
      }
      const std::span<std::byte> staged = staging_.bytes().subspan(
          (out_->n_sent() % kStagingBuffers) * stride(chunk_bytes_max_), job.bytes.size());
      std::memcpy(staged.data(), job.bytes.data(), job.bytes.size());
      const rpc::Outgoing message{
          .header = {.kind = rpc::MessageKind::kChunk,
                     .session = id_.session,
                     .epoch = id_.epoch,
                     .step = job.request,
                     .n_rows = 1,
                     .row_bytes = static_cast<std::uint32_t>(job.bytes.size()),
                     .last = jobs_.empty()},
          .rows = staged,
          .descriptor = {}};
      const Result<bool> sent = out_->try_send(message);
      finish(job, sent.ok() ? ok() : Result<void>(Error(sent.error())));
      RECUA_RETURN_IF_ERROR(sent);
      RECUA_CHECK(*sent);  // There was a credit, and nobody else sends here.
    }
    return moved;
  }

  void finish(const Job& job, Result<void> result) {
    asio::post(home_, [outcome = job.outcome, result = std::move(result)] {
      outcome->result = result;
      outcome->decided.notify_all();
    });
  }

 public:
  /// From one staging buffer to the next.
  static constexpr std::uint64_t stride(std::uint64_t chunk_bytes) {
    return align_up<std::uint64_t>(chunk_bytes, 4096);
  }

 private:
  asio::any_io_executor home_;
  rpc::ChannelId id_;
  sys::AlignedBuffer staging_;
  std::uint64_t chunk_bytes_max_;
  std::unique_ptr<rpc::ChannelSender> out_;
  std::deque<Job> jobs_;
  std::optional<Error> failure_;
  rpc::LinkStats stats_;
  std::atomic<bool> stop_requested_ = false;
  std::shared_ptr<net::Event> wake_;
};

Result<std::shared_ptr<WeightsPusher>> WeightsPusher::start(Offload& offload, Parts parts) {
  if (parts.ring.slot_bytes <= rpc::kTensorHeaderBytes) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("slots of {} bytes hold no chunk", parts.ring.slot_bytes)};
  }
  const std::uint64_t chunk_bytes =
      std::min(kChunkBytes, parts.ring.slot_bytes - rpc::kTensorHeaderBytes);
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer staging,
                         sys::AlignedBuffer::allocate(kStagingBuffers * Pump::stride(chunk_bytes)));
  auto self = std::shared_ptr<WeightsPusher>(new WeightsPusher());
  self->env_ = parts.context.env;
  self->loop_ = offload.new_stage_loop();
  const asio::any_io_executor home = self->env_.executor;
  self->pump_ = std::make_shared<Pump>(home, parts.id, std::move(staging), chunk_bytes);
  RECUA_ASSIGN_OR_RETURN(std::unique_ptr<net::Connection> moved,
                         parts.connection->move_to(self->loop_->executor()));
  rpc::LinkContext context = std::move(parts.context);
  context.env.executor = self->loop_->executor();
  context.report = [home, report = std::move(context.report)](const std::string& text) {
    asio::post(home, [report, text] { report(text); });
  };
  const net::Env env = context.env;
  self->pump_->set_channel(rpc::make_link_sender(std::move(context), std::move(moved), parts.ring,
                                                 {self->pump_->memory()}, parts.features));
  // The control loop may not run out of work before the channel's end has been told there.
  asio::any_io_executor tracked = asio::prefer(home, asio::execution::outstanding_work.tracked);
  asio::co_spawn(self->loop_->executor(), Pump::drive(self->pump_, env),
                 [self, tracked = std::move(tracked), ended = std::move(parts.ended)](
                     std::exception_ptr, const Result<void>&) mutable {
                   // Back to the control loop, which alone may drop the last reference to us.
                   asio::post(tracked, [self = std::move(self), ended = std::move(ended)] {
                     ended(self->pump_->stats());
                   });
                 });
  return self;
}

WeightsPusher::~WeightsPusher() = default;

asio::awaitable<Result<void>> WeightsPusher::push(std::uint64_t request,
                                                  std::span<const std::byte> bytes) {
  const auto self = shared_from_this();
  const auto outcome = std::make_shared<Outcome>(env_.executor);
  asio::post(loop_->executor(),
             [pump = pump_, job = Job{request, bytes, outcome}] { pump->add(job); });
  while (!outcome->result.has_value()) co_await outcome->decided.wait();
  co_return *outcome->result;
}

void WeightsPusher::close() {
  pump_->request_stop();
  asio::post(loop_->executor(), [pump = std::weak_ptr<Pump>(pump_)] {
    if (const auto alive = pump.lock()) alive->wake();
  });
}

}  // namespace recua::cluster
