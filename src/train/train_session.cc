#include "train/train_session.h"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/wire.h"
#include "sys/topology.h"

namespace recua::train {
namespace {

namespace asio = boost::asio;

/// Ranks wait for the slowest one's pass; a rank that is gone or silent is noticed by the
/// coordinator, which closes the session.
constexpr net::Duration kRankTimeout = std::chrono::hours(12);
/// For a piece of a gradient: the coordinator may be validating or writing a checkpoint meanwhile,
/// and its loss is noticed by heartbeats.
constexpr net::Duration kPieceTimeout = std::chrono::hours(12);

}  // namespace

cluster::TrainingFactory training_factory(std::size_t n_threads) {
  return [n_threads](
             const cluster::SessionEnv& env, const wire::OpenTraining& message,
             cluster::TrainingEvents events) -> Result<std::shared_ptr<cluster::TrainingSession>> {
    TrainSession::Request request;
    request.id = {.session = message.session(), .epoch = message.epoch()};
    request.n_threads = n_threads;
    RECUA_ASSIGN_OR_RETURN(request.secret, cluster::secret_from_wire(message.secret()));
    RECUA_ASSIGN_OR_RETURN(request.task, from_wire(message));
    return std::make_shared<TrainSession>(env, std::move(request), std::move(events));
  };
}

TrainSession::TrainSession(cluster::SessionEnv env, Request request, cluster::TrainingEvents events)
    : env_(std::move(env)),
      request_(std::move(request)),
      events_(std::move(events)),
      group_(request_.task.options.rank, request_.task.options.n_ranks),
      ended_(env_.env.executor) {
  group_.set_timeout(kRankTimeout);
}

TrainSession::~TrainSession() { group_.disconnect(); }  // Its loop goes before it does.

asio::awaitable<Result<void>> TrainSession::open() {
  const auto self = shared_from_this();
  const std::uint64_t links = options().n_ranks > 1 ? cluster::group_bytes(options().n_ranks) : 0;
  const std::uint64_t angles = std::uint64_t{8} * options().n_ctx * request_.task.shape.hp.rope_dim;
  const std::uint64_t needed =
      rank_bytes(request_.task.shape, options(), request_.n_threads) + links + angles;
  // What is free is asked before this session counts itself.
  if (const std::uint64_t free = env_.memory_free(); needed > free) {
    co_return Error{ErrorCode::kResourceExhausted,
                    fmt::format("training as rank {} of {} needs {}, but {} are free here (a "
                                "smaller --batch or --context, or --recompute needs less)",
                                options().rank, options().n_ranks, cluster::format_bytes(needed),
                                cluster::format_bytes(free))};
  }
  memory_bytes_ = needed;
  Result<void> allocated = ok();
  std::function<void()> work = [&] { allocated = allocate(); };
  try {
    co_await env_.offload->run(work);
  } catch (...) {
    allocated = Error{ErrorCode::kResourceExhausted,
                      fmt::format("training as rank {} of {} ran out of memory or threads before "
                                  "it began",
                                  options().rank, options().n_ranks)};
  }
  if (allocated.ok() && closed_) {
    co_return Error{ErrorCode::kCancelled, "the session was closed while it was opened"};
  }
  opened_ = allocated.ok();
  co_return allocated;
}

Result<void> TrainSession::allocate() {
  RECUA_ASSIGN_OR_RETURN(const sys::InstructionSet set, sys::choose_instruction_set("auto"));
  RECUA_ASSIGN_OR_RETURN(team_, Team::create(request_.n_threads, set));
  RECUA_ASSIGN_OR_RETURN(trainer_, RankTrainer::create(*team_, request_.task.shape, options()));
  return ok();
}

Result<void> TrainSession::add_state(const wire::TrainState& piece) {
  if (!opened_ || closed_ || running_) {
    return Error{ErrorCode::kProtocol, "train_state comes after open_training, before the start"};
  }
  RECUA_ASSIGN_OR_RETURN(const std::size_t n, check_piece(piece.data(), "train_state.data"));
  if (piece.offset() != state_bytes_) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("train_state.offset is {}, due was {}", piece.offset(), state_bytes_)};
  }
  std::size_t at = state_bytes_ / sizeof(float);
  std::size_t n_taken = 0;
  for (const std::span<float> array : {trainer_->params(), trainer_->m(), trainer_->v()}) {
    if (at < array.size()) {
      const std::size_t n_here = std::min(n - n_taken, array.size() - at);
      floats_from_wire(piece.data(), n_taken, array.subspan(at, n_here));
      n_taken += n_here;
      at = 0;
    } else {
      at -= array.size();
    }
    if (n_taken == n) break;
  }
  if (n_taken < n) return Error{ErrorCode::kProtocol, "train_state has more than the rank holds"};
  state_bytes_ += piece.data().size();
  return ok();
}

// ---- Channels -----------------------------------------------------------------------------------

Result<rpc::RingShape> TrainSession::ring(const rpc::ChannelRequest& request) const {
  if (!opened_ || running_ || closed_ || !cluster::group_channel_of(request.number) ||
      request.direction != rpc::Direction::kConnectorSends) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("training session {:016x} waits for no channel {}", request.id.session,
                             request.number)};
  }
  return cluster::kGroupRing;
}

Result<void> TrainSession::attach(std::unique_ptr<net::Connection> connection,
                                  const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) {
  RECUA_RETURN_IF_ERROR(ring(request));  // It may have started meanwhile.
  return group_.attach(*cluster::group_channel_of(request.number),
                       {.connection = std::move(connection),
                        .number = request.number,
                        .name = peer.name,
                        .ring = request.ring,
                        .features = peer.features});
}

Result<void> TrainSession::attach_out(cluster::ChannelEnd end) {
  const auto channel = cluster::group_channel_of(end.number);
  if (!opened_ || running_ || closed_ || !channel) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("this training session does not wait for channel {}", end.number)};
  }
  return group_.attach(*channel, std::move(end));
}

// ---- Steps --------------------------------------------------------------------------------------

Result<void> TrainSession::start() {
  if (!opened_ || closed_ || running_) {
    return Error{ErrorCode::kProtocol, "start_session: the training session is not ready"};
  }
  const std::uint64_t expected =
      sizeof(float) * (trainer_->params().size() + trainer_->m().size() + trainer_->v().size());
  if (state_bytes_ != expected) {
    return Error{ErrorCode::kProtocol, fmt::format("start_session came after {} of {} bytes of "
                                                   "train_state",
                                                   state_bytes_, expected)};
  }
  RECUA_RETURN_IF_ERROR(group_.check_complete());
  loop_ = env_.offload->new_stage_loop();
  net::Env loop_env = env_.env;
  loop_env.executor = loop_->executor();
  loop_env.run_one = loop_->run_one();
  loop_env.spin = net::Duration::zero();  // Whoever waits here takes time from what computes.
  RECUA_RETURN_IF_ERROR(group_.connect(
      request_.id, loop_env, env_.link_policy,
      [this](const cluster::ChannelEnd& end, bool sends) {
        return cluster::session_link_context(env_, *loop_, end, sends, events_.reported);
      },
      loop_->new_waiter()));
  running_ = true;
  // The control loop may not run out of work before the end has been told there.
  asio::any_io_executor home =
      asio::prefer(env_.env.executor, asio::execution::outstanding_work.tracked);
  asio::post(loop_->executor(), [self = shared_from_this(), home = std::move(home)]() mutable {
    Result<void> result = ok();
    try {
      result = self->run();
    } catch (...) {
      result = Error{ErrorCode::kResourceExhausted, "training ran out of memory"};
    }
    // A step that threw may have left a bucket under way, which uses the links.
    self->group_.cancel();
    self->trainer_->end();
    self->group_.disconnect();
    asio::post(home, [self = std::move(self), result = std::move(result)] { self->ended(result); });
  });
  return ok();
}

Result<void> TrainSession::run() {
  RECUA_RETURN_IF_ERROR(group_.barrier());  // Settles the links before somebody waits for a step.
  while (true) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || next_.has_value(); });
    if (stop_) return ok();
    const RankStep step = *std::exchange(next_, std::nullopt);
    lock.unlock();
    const auto reduced = [this, &step](const RankSums& sums) {
      asio::co_spawn(
          env_.env.executor, send_gradient(step.step, sums),
          [self = shared_from_this()](const std::exception_ptr& thrown) {
            if (thrown == nullptr) return;
            self->fail({ErrorCode::kResourceExhausted, "sending a gradient ran out of memory"});
          });
    };
    RECUA_RETURN_IF_ERROR(trainer_->step(step, group_.channels(), reduced));
  }
}

Result<void> TrainSession::check_step(const wire::TrainStep& message) const {
  if (message.epoch() != request_.id.epoch || !running_) {
    return Error{ErrorCode::kProtocol, "train_step came for a session that does not run"};
  }
  if (busy_) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("train_step {} came before the gradient of the one before was sent",
                             message.step())};
  }
  return ok();
}

void TrainSession::take_step(const wire::TrainStep& message) {
  if (closed_) return;
  if (const auto checked = check_step(message); !checked.ok()) return fail(checked.error());
  auto step = from_wire(message, request_.task);
  if (!step.ok()) return fail(step.error());
  busy_ = true;
  const std::scoped_lock lock(mutex_);
  next_ = std::move(*step);
  changed_.notify_all();
}

// The next step comes when the coordinator has all of this one, so the numbers stay meanwhile.
asio::awaitable<void> TrainSession::send_gradient(std::uint64_t step, RankSums sums) {
  const auto self = shared_from_this();
  touched_ = true;
  const std::span<const float> all = trainer_->shard_gradient();
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kPieceFloats, all.size() - at);
    wire::ControlMessage request;
    wire::TrainGradient& piece = *request.mutable_train_gradient();
    piece.set_session(request_.id.session);
    piece.set_epoch(request_.id.epoch);
    piece.set_step(step);
    piece.set_offset(at);
    piece.set_loss(sums.loss);
    piece.set_sum_squares(sums.sum_squares);
    floats_to_wire(all.subspan(at, n), *piece.mutable_data());
    at += n;
    if (at == all.size()) busy_ = false;
    const Result<wire::ControlMessage> reply =
        co_await events_.call(std::move(request), kPieceTimeout);
    if (closed_) co_return;
    if (!reply.ok()) {
      fail(reply.error());
      co_return;
    }
  } while (at < all.size());
}

// ---- The end ------------------------------------------------------------------------------------

void TrainSession::fail(const Error& error) {
  if (closed_) return;
  events_.failed(error);
  close();
}

void TrainSession::ended(const Result<void>& result) {
  running_ = false;
  const bool tell = !result.ok() && !closed_;
  closed_ = true;  // What the trainer computed with is gone: nobody starts this one again.
  if (tell) events_.failed(result.error());
  ended_.notify_all();
}

void TrainSession::close() {
  if (std::exchange(closed_, true)) return;
  group_.cancel();
  if (opened_) trainer_->stop();
  const std::scoped_lock lock(mutex_);
  stop_ = true;
  changed_.notify_all();
}

asio::awaitable<void> TrainSession::wait_until_ended(net::Duration timeout) {
  const auto self = shared_from_this();
  bool expired = false;
  const auto timer = env_.env.clock->start_timer(env_.env.executor, env_.env.clock->now() + timeout,
                                                 [this, &expired] {
                                                   expired = true;
                                                   ended_.notify_all();
                                                 });
  while (running_ && !expired) co_await ended_.wait();
}

}  // namespace recua::train
