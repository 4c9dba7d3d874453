// Everything but the constructor and run() happens on the loop's thread.
#include "train/worker_group.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <limits>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "cluster/rank_group.h"
#include "cluster/run_all.h"
#include "cluster/wire.h"
#include "rpc/wire_error.h"

namespace recua::train {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kCallTimeout = std::chrono::seconds(30);
/// To allocate, or to take a piece of the state; loss is noticed by heartbeats long before.
constexpr net::Duration kOpenTimeout = std::chrono::minutes(10);
/// A rank ends after the pass that it computes.
constexpr net::Duration kEndTimeout = std::chrono::minutes(11);
constexpr net::Duration kCloseTimeout = std::chrono::seconds(2);
constexpr std::size_t kLineBytesMax = 1024;

}  // namespace

struct WorkerGroup::Peer {
  net::Endpoint endpoint;
  std::string name;  // "worker b:7500"
  rpc::PeerInfo info;
  std::unique_ptr<rpc::ControlConnection> control;
  bool lost = false;

  // Of the session.
  std::uint32_t rank = 0;
  std::size_t n_taken = 0;  // Of the step's gradient of its shard.
  bool done = false;        // All of it.
  RankSums sums;
};

WorkerGroup::WorkerGroup(asio::io_context& loop, net::Env env, WorkerGroupOptions options)
    : loop_(loop),
      env_(std::move(env)),
      options_(std::move(options)),
      changed_(env_.executor),
      work_(asio::make_work_guard(loop)),
      thread_([this] { loop_.run(); }) {
  self_.name = "coordinator";
  self_.software_version = RECUA_VERSION;
  self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTensorSplit));
  self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTraining));
  self_.shared_memory_host = options_.shared_memory_host;
  self_.rdma_ports = options_.rdma_ports;
  for (const net::Endpoint& endpoint : options_.workers) {
    peers_.push_back(std::make_unique<Peer>());
    peers_.back()->endpoint = endpoint;
    peers_.back()->name = "worker " + endpoint.to_string();
  }
}

WorkerGroup::~WorkerGroup() {
  const auto drop = [](WorkerGroup& group) -> asio::awaitable<bool> {
    for (const auto& peer : group.peers_) {
      if (peer->control != nullptr) peer->control->close();
    }
    co_return true;
  };
  run(drop(*this));
  work_.reset();  // What still waits sees that its connection is closed, and ends.
}

template <class T>
T WorkerGroup::run(asio::awaitable<T> coroutine) {
  std::optional<T> out;
  std::promise<void> ended;
  const auto store = [](asio::awaitable<T> work, std::optional<T>& to) -> asio::awaitable<void> {
    to.emplace(co_await std::move(work));
  };
  auto stored = store(std::move(coroutine), out);
  asio::co_spawn(loop_, std::move(stored), [&ended](const std::exception_ptr& thrown) {
    if (thrown) {
      ended.set_exception(thrown);
    } else {
      ended.set_value();
    }
  });
  ended.get_future().get();
  return std::move(*out);
}

Result<void> WorkerGroup::connect() { return run(connect_all()); }
Result<void> WorkerGroup::open(const TrainingRun& training) { return run(open_all(training)); }
Result<std::vector<RankSums>> WorkerGroup::wait_step() { return run(collect()); }
bool WorkerGroup::settle() { return run(settle_all()); }
void WorkerGroup::close() { run(close_all(kCloseTimeout)); }

std::uint32_t WorkerGroup::n_left() {
  const auto count = [](const WorkerGroup& group) -> asio::awaitable<std::size_t> {
    co_return group.left().size();
  };
  return static_cast<std::uint32_t>(run(count(*this)));
}

Result<void> WorkerGroup::send_step(const std::vector<RankStep>& steps) {
  const auto send = [](WorkerGroup& group,
                       const std::vector<RankStep>& all) -> asio::awaitable<Result<void>> {
    co_return group.send_steps(all);
  };
  return run(send(*this, steps));
}

std::vector<WorkerGroup::Peer*> WorkerGroup::left() const {
  std::vector<Peer*> out;
  for (const auto& peer : peers_) {
    if (!peer->lost && peer->control != nullptr && !peer->control->lost()) {
      out.push_back(peer.get());
    }
  }
  return out;
}

void WorkerGroup::fail(Error error) {
  if (!failure_) failure_ = std::move(error);
  changed_.notify_all();
}

// ---- Connections --------------------------------------------------------------------------------

asio::awaitable<Result<void>> WorkerGroup::connect_all() {
  std::vector<asio::awaitable<Result<void>>> tasks;
  for (const auto& peer : peers_) tasks.push_back(connect_to(*peer));
  Result<void> connected = co_await cluster::run_all(env_.executor, std::move(tasks));
  co_return connected;
}

asio::awaitable<Result<void>> WorkerGroup::connect_to(Peer& peer) {
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(peer.endpoint, options_.connect_timeout);
  if (!connection.ok()) co_return std::move(connection).error().within(peer.name);
  const rpc::PeerInfo self = self_;
  Result<rpc::PeerInfo> welcome =
      co_await rpc::client_handshake(env_, **connection, self, options_.connect_timeout);
  if (!welcome.ok()) co_return std::move(welcome).error().within(peer.name);
  peer.info = std::move(*welcome);
  if (!peer.info.has(rpc::Feature::kTraining)) {
    co_return Error{ErrorCode::kUnsupported,
                    fmt::format("{} runs recua {}, which does not train: update it (this is {})",
                                peer.name, peer.info.software_version, RECUA_VERSION)};
  }
  rpc::ControlHandlers handlers;
  handlers.on_request = [this, &peer](wire::ControlMessage request) -> asio::awaitable<Reply> {
    if (!request.has_train_gradient()) {
      co_return Error{ErrorCode::kUnsupported,
                      "a coordinator of a training run only takes gradients"};
    }
    co_return take_gradient(peer, request.train_gradient());
  };
  handlers.on_notice = [this, &peer](const wire::ControlMessage& notice) {
    take_notice(peer, notice);
  };
  handlers.on_lost = [this, &peer](const Error& error) {
    peer.lost = true;
    fail({ErrorCode::kUnavailable, fmt::format("{}: {}", peer.name, error.message)});
  };
  peer.control = std::make_unique<rpc::ControlConnection>(env_, std::move(*connection),
                                                          options_.control, std::move(handlers));
  co_return ok();
}

asio::awaitable<WorkerGroup::Reply> WorkerGroup::call(Peer& peer, wire::ControlMessage request,
                                                      net::Duration timeout) {
  Reply reply = co_await peer.control->call(std::move(request), timeout);
  if (!reply.ok()) co_return std::move(reply).error().within(peer.name);
  co_return reply;
}

void WorkerGroup::take_notice(Peer& peer, const wire::ControlMessage& notice) {
  if (notice.has_session_failed() && notice.session_failed().session() == id_.session) {
    const wire::SessionFailed& failed = notice.session_failed();
    fail(rpc::from_peer(peer.name, failed.code(), failed.message()));
  } else if (notice.has_link_report() && notice.link_report().session() == id_.session) {
    const std::string line = rpc::wire_text(notice.link_report().text(), kLineBytesMax);
    if (notice.link_report().sends()) {
      log_info("{}: {}", peer.name, line);
    } else {
      log_debug("{}: {}", peer.name, line);
    }
  }
}

// ---- A session ----------------------------------------------------------------------------------

asio::awaitable<Result<void>> WorkerGroup::open_all(const TrainingRun& training) {
  using Task = asio::awaitable<Result<void>>;
  std::vector<Peer*> ranks = left();
  if (ranks.empty() || training.shards->n_ranks() != ranks.size()) {
    co_return Error{ErrorCode::kUnavailable, "a worker was lost when the session was to begin"};
  }
  ranks_ = std::move(ranks);
  run_ = training;
  run_->task.options.n_ranks = static_cast<std::uint32_t>(ranks_.size());
  id_ = {.session = env_.random(), .epoch = 1};
  secret_ = rpc::make_secret(env_);
  failure_.reset();
  step_.reset();
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) ranks_[r]->rank = r;
  std::vector<Task> opens;
  for (Peer* const peer : ranks_) opens.push_back(open_on(*peer));
  RECUA_CO_RETURN_IF_ERROR(co_await cluster::run_all(env_.executor, std::move(opens)));
  std::vector<Task> links;
  for (Peer* const from : ranks_) {
    for (const Peer* const to : ranks_) {
      if (from != to) links.push_back(link(*from, *to));
    }
  }
  RECUA_CO_RETURN_IF_ERROR(co_await cluster::run_all(env_.executor, std::move(links)));
  std::vector<Task> starts;
  for (Peer* const peer : ranks_) starts.push_back(start_on(*peer));
  RECUA_CO_RETURN_IF_ERROR(co_await cluster::run_all(env_.executor, std::move(starts)));
  co_return ok();
}

asio::awaitable<Result<void>> WorkerGroup::open_on(Peer& peer) {
  RankTask task = run_->task;
  task.options.rank = peer.rank;
  wire::ControlMessage request;
  wire::OpenTraining& open = *request.mutable_open_training();
  to_wire(task, run_->hyperparams, open);
  open.set_session(id_.session);
  open.set_epoch(id_.epoch);
  open.set_secret(cluster::secret_to_wire(secret_));
  const Reply reply = co_await call(peer, std::move(request), kOpenTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  Result<void> sent = co_await send_state(peer);
  co_return sent;
}

asio::awaitable<Result<void>> WorkerGroup::send_state(Peer& peer) {
  std::uint64_t offset = 0;
  std::vector<float> piece;
  const auto send = [&]() -> asio::awaitable<Result<void>> {
    wire::ControlMessage request;
    wire::TrainState& state = *request.mutable_train_state();
    state.set_session(id_.session);
    state.set_epoch(id_.epoch);
    state.set_offset(offset);
    floats_to_wire(piece, *state.mutable_data());
    offset += piece.size() * sizeof(float);
    const Reply reply = co_await call(peer, std::move(request), kOpenTimeout);
    if (!reply.ok()) co_return Error(reply.error());
    co_return ok();
  };
  for (std::size_t at = 0; at < run_->params.size(); at += kPieceFloats) {
    const std::size_t n = std::min(kPieceFloats, run_->params.size() - at);
    piece.assign(run_->params.data() + at, run_->params.data() + at + n);
    RECUA_CO_RETURN_IF_ERROR(co_await send());
  }
  const std::size_t n_own = run_->shards->size(peer.rank);
  for (const std::span<const float> moments : {run_->m, run_->v}) {
    for (std::size_t at = 0; at < n_own; at += kPieceFloats) {
      piece.clear();
      run_->shards->for_range(peer.rank, at, std::min(kPieceFloats, n_own - at),
                              [&](std::size_t begin, std::size_t, std::size_t n) {
                                piece.insert(piece.end(), moments.data() + begin,
                                             moments.data() + begin + n);
                              });
      RECUA_CO_RETURN_IF_ERROR(co_await send());
    }
  }
  co_return ok();
}

asio::awaitable<Result<void>> WorkerGroup::link(Peer& from, const Peer& to) {
  wire::ControlMessage request;
  wire::OpenChannel& open = *request.mutable_open_channel();
  open.set_session(id_.session);
  open.set_epoch(id_.epoch);
  open.set_number(cluster::group_channel_number({.from = from.rank, .to = to.rank}));
  open.set_host(to.endpoint.host);
  open.set_port(to.endpoint.port);
  open.set_secret(cluster::secret_to_wire(secret_));
  const Reply reply = co_await call(from, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

asio::awaitable<Result<void>> WorkerGroup::start_on(Peer& peer) {
  wire::ControlMessage request;
  request.mutable_start_session()->set_session(id_.session);
  request.mutable_start_session()->set_epoch(id_.epoch);
  const Reply reply = co_await call(peer, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

asio::awaitable<Result<void>> WorkerGroup::close_on(Peer& peer, net::Duration timeout) {
  wire::ControlMessage request;
  request.mutable_close_session()->set_session(id_.session);
  const Reply reply = co_await call(peer, std::move(request), timeout);
  if (!reply.ok()) log_debug("{}", reply.error().message);
  co_return ok();
}

asio::awaitable<bool> WorkerGroup::close_all(net::Duration timeout) {
  step_.reset();
  std::vector<asio::awaitable<Result<void>>> tasks;
  for (Peer* const peer : left()) tasks.push_back(close_on(*peer, timeout));
  const Result<void> closed = co_await cluster::run_all(env_.executor, std::move(tasks));
  co_return closed.ok();
}

asio::awaitable<bool> WorkerGroup::settle_all() {
  const auto n_lost = [this] {
    return std::ranges::count_if(ranks_, [](const Peer* peer) { return peer->lost; });
  };
  bool expired = false;
  const net::Duration silence =
      options_.control.heartbeat_interval * (options_.control.lost_after_intervals + 1);
  const auto timer =
      env_.clock->start_timer(env_.executor, env_.clock->now() + silence, [this, &expired] {
        expired = true;
        changed_.notify_all();
      });
  while (n_lost() == 0 && !expired) co_await changed_.wait();
  co_await close_all(kEndTimeout);
  co_return n_lost() > 0;
}

// ---- Steps --------------------------------------------------------------------------------------

Result<void> WorkerGroup::send_steps(const std::vector<RankStep>& steps) {
  if (failure_) return *failure_;
  RECUA_CHECK(steps.size() == ranks_.size() && !step_);
  step_ = steps.front().step;
  for (Peer* const peer : ranks_) {
    peer->n_taken = 0;
    peer->done = false;
    wire::ControlMessage notice;
    to_wire(steps[peer->rank], *notice.mutable_train_step());
    notice.mutable_train_step()->set_session(id_.session);
    notice.mutable_train_step()->set_epoch(id_.epoch);
    if (auto sent = peer->control->notify(std::move(notice)); !sent.ok()) {
      fail(std::move(sent).error().within(peer->name));
      return *failure_;
    }
  }
  return ok();
}

WorkerGroup::Reply WorkerGroup::take_gradient(Peer& peer, const wire::TrainGradient& piece) {
  if (piece.session() != id_.session || piece.epoch() != id_.epoch || !step_ || peer.done) {
    return Error{ErrorCode::kCancelled, "no gradient is waited for: this session is over"};
  }
  const std::size_t n_own = run_->shards->size(peer.rank);
  std::size_t n = 0;
  if (n_own > 0) {
    RECUA_ASSIGN_OR_RETURN(n, check_piece(piece.data(), "train_gradient.data"));
  }
  if (piece.step() != *step_ || piece.offset() != peer.n_taken || n > n_own - peer.n_taken) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("train_gradient of step {} has {} numbers from {} on, due were those "
                             "of step {} from {} on, {} in all",
                             piece.step(), n, piece.offset(), *step_, peer.n_taken, n_own)};
  }
  bool finite = true;
  run_->shards->for_range(peer.rank, peer.n_taken, n,
                          [&](std::size_t at, std::size_t in_shard, std::size_t n_here) {
                            const std::span<float> to = run_->gradients.subspan(at, n_here);
                            floats_from_wire(piece.data(), in_shard - peer.n_taken, to);
                            for (const float x : to) finite = finite && std::isfinite(x);
                          });
  peer.n_taken += n;
  if (peer.n_taken == n || !finite) peer.sums = {piece.loss(), piece.sum_squares()};
  // Whoever looks at the length of the gradient then sees that training has diverged.
  if (!finite) peer.sums.sum_squares = std::numeric_limits<double>::quiet_NaN();
  peer.done = peer.n_taken == n_own;
  if (peer.done) changed_.notify_all();
  wire::ControlMessage reply;
  reply.mutable_done();
  return reply;
}

asio::awaitable<Result<std::vector<RankSums>>> WorkerGroup::collect() {
  const auto all_done = [this] {
    return std::ranges::all_of(ranks_, [](const Peer* peer) { return peer->done; });
  };
  while (!failure_ && !all_done()) co_await changed_.wait();
  // A worker that is lost after its gradient has come spoils the next step, not this one.
  if (!all_done()) co_return *failure_;
  step_.reset();
  std::vector<RankSums> out;
  for (const Peer* const peer : ranks_) out.push_back(peer->sums);
  co_return out;
}

}  // namespace recua::train
