#include "cluster/weights_receive.h"

#include <atomic>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "cluster/poll_loop.h"
#include "cluster/weights_channel.h"
#include "net/deadline.h"

namespace recua::cluster {

namespace asio = boost::asio;

/// What lives on the channel's own loop.
class WeightsReceiver::Pump {
 public:
  using Take = decltype(Parts::take);
  using Told = std::function<void(std::uint64_t request, const Result<void>& stored)>;

  Pump(std::unique_ptr<rpc::ChannelReceiver> in, Take take, Told told)
      : in_(std::move(in)), take_(std::move(take)), told_(std::move(told)) {}

  /// Polls until the channel breaks or a requested stop.
  static asio::awaitable<Result<void>> drive(std::shared_ptr<Pump> self, net::Env env) {
    self->wake_ = std::make_shared<net::Event>(env.executor);
    std::function<Result<bool>()> poll_fn = [self] { return self->poll(); };
    const net::ReadyCallback ready = [wake = self->wake_] { wake->notify_all(); };
    std::function<void()> arm_fn = [self, ready] { self->in_->arm(ready); };
    std::function<bool()> done_fn = [self] { return self->stop_requested_.load(); };
    const std::shared_ptr<net::Event> wake = self->wake_;
    Result<void> ended = co_await poll_until(env, *wake, poll_fn, arm_fn, done_fn);
    self->stats_.transport = self->in_->transport();
    self->stats_.sends = false;
    self->stats_.counters = self->in_->counters();
    self->in_.reset();
    co_return ended;
  }

  void request_stop() { stop_requested_ = true; }
  void wake() {
    if (wake_ != nullptr) wake_->notify_all();
  }
  [[nodiscard]] const rpc::LinkStats& stats() const { return stats_; }

 private:
  Result<bool> poll() {
    RECUA_ASSIGN_OR_RETURN(const rpc::Incoming* const incoming, in_->poll());
    if (incoming == nullptr) return false;
    const rpc::TensorHeader& header = incoming->header;
    if (header.kind != rpc::MessageKind::kChunk || header.n_rows != 1 ||
        header.descriptor_bytes != 0) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: message kind {} with {} rows came on a channel for weights",
                               in_->peer(), static_cast<int>(header.kind), header.n_rows)};
    }
    const Result<void> stored = take_(header.step, incoming->rows);
    if (!stored.ok() && stored.error().code == ErrorCode::kProtocol) {
      return Error(stored.error()).within(in_->peer());
    }
    told_(header.step, stored);
    RECUA_RETURN_IF_ERROR(in_->release(incoming->slot));
    return true;
  }

  std::unique_ptr<rpc::ChannelReceiver> in_;
  Take take_;
  Told told_;
  rpc::LinkStats stats_;
  std::atomic<bool> stop_requested_ = false;
  std::shared_ptr<net::Event> wake_;
};

Result<std::shared_ptr<WeightsReceiver>> WeightsReceiver::create(Parts parts) {
  const rpc::RingShape shape = weights_ring(parts.chunk_bytes_max);
  RECUA_ASSIGN_OR_RETURN(std::unique_ptr<RingBuffer> ring,
                         RingBuffer::create(nullptr, shape, parts.policy));
  return std::shared_ptr<WeightsReceiver>(new WeightsReceiver(std::move(parts), std::move(ring)));
}

WeightsReceiver::WeightsReceiver(Parts parts, std::unique_ptr<RingBuffer> ring)
    : parts_(std::move(parts)),
      shape_(weights_ring(parts_.chunk_bytes_max)),
      changed_(parts_.env.executor),
      ring_(std::move(ring)) {}

WeightsReceiver::~WeightsReceiver() = default;

Result<void> WeightsReceiver::attach(std::unique_ptr<net::Connection> connection,
                                     const rpc::PeerInfo& peer) {
  if (loop_ != nullptr) {
    return Error{ErrorCode::kProtocol, "this session has a channel for weights already"};
  }
  loop_ = parts_.offload->new_stage_loop();
  const asio::any_io_executor home = parts_.env.executor;
  rpc::LinkContext context;
  context.env = parts_.env;
  context.env.executor = loop_->executor();
  context.policy = parts_.policy;
  context.self = parts_.name;
  context.other = peer.name;
  const rpc::LinkStats link{.from = peer.name, .to = parts_.name, .sends = false};
  context.report = [home, reported = parts_.reported, link](const std::string& text) {
    asio::post(home, [reported, link, text] { reported(link, text); });
  };
  const net::Env env = context.env;
  Result<std::unique_ptr<net::Connection>> moved = connection->move_to(loop_->executor());
  Result<std::unique_ptr<rpc::ChannelReceiver>> in = Error{ErrorCode::kUnavailable, "not moved"};
  if (moved.ok()) {
    in = rpc::make_link_receiver(std::move(context), std::move(*moved), parts_.id, shape_,
                                 ring_->memory());
  }
  if (!moved.ok() || !in.ok()) {
    ended_ = moved.ok() ? in.error() : moved.error();
    return *ended_;
  }
  const std::weak_ptr<WeightsReceiver> weak = weak_from_this();
  const Pump::Told told = [home, weak](std::uint64_t request, const Result<void>& stored) {
    asio::post(home, [weak, request, stored] {
      const auto self = weak.lock();
      if (self == nullptr) return;
      self->taken_.insert_or_assign(request, stored);
      self->changed_.notify_all();
    });
  };
  pump_ = std::make_shared<Pump>(std::move(*in), parts_.take, told);
  // The control loop may not run out of work before the channel's end has been told there.
  asio::any_io_executor tracked = asio::prefer(home, asio::execution::outstanding_work.tracked);
  asio::co_spawn(loop_->executor(), Pump::drive(pump_, env),
                 [self = shared_from_this(), tracked = std::move(tracked)](
                     std::exception_ptr thrown, Result<void> result) mutable {
                   if (thrown != nullptr) {
                     result = Error{ErrorCode::kResourceExhausted, "out of memory"};
                   }
                   // Back to the control loop, which alone may drop the last reference to us.
                   asio::post(tracked, [self = std::move(self), result = std::move(result)] {
                     self->stats_ = self->pump_->stats();
                     self->ended_ = result.ok() ? Error{ErrorCode::kUnavailable, "it was closed"}
                                                : result.error();
                     self->changed_.notify_all();
                   });
                 });
  return ok();
}

asio::awaitable<Result<void>> WeightsReceiver::wait_for(std::uint64_t request,
                                                        net::Duration timeout) {
  const auto self = shared_from_this();
  bool expired = false;
  const auto timer = parts_.env.clock->start_timer(
      parts_.env.executor, parts_.env.clock->now() + timeout, [this, &expired] {
        expired = true;
        changed_.notify_all();
      });
  while (true) {
    // What was taken before the end counts: it was told before it.
    if (const auto found = taken_.find(request); found != taken_.end()) {
      Result<void> stored = std::move(found->second);
      taken_.erase(found);
      co_return stored;
    }
    if (ended_.has_value()) {
      co_return Error{ErrorCode::kUnavailable, ended_->message};
    }
    if (expired) {
      co_return Error{ErrorCode::kTimeout,
                      fmt::format("no chunk came within {}", net::to_string(timeout))};
    }
    co_await changed_.wait();
  }
}

void WeightsReceiver::stop() {
  if (pump_ == nullptr) return;
  pump_->request_stop();
  asio::post(loop_->executor(), [pump = std::weak_ptr<Pump>(pump_)] {
    if (const auto alive = pump.lock()) alive->wake();
  });
}

asio::awaitable<void> WeightsReceiver::close() {
  const auto self = shared_from_this();
  stop();
  while (is_open()) co_await changed_.wait();
}

}  // namespace recua::cluster
