#pragma once
/// WorkerGroup: the workers of a data-parallel run as its coordinator sees them: connections, one
/// training session at a time on all that are left, steps, and the gradients that come back.
///
/// A session ends with the first worker that is lost (a broken connection, or silence on it) or
/// that says it failed. settle() then finds out who is left, and open() begins another on them.
/// Connections live on a thread of their own, so that heartbeats go on whatever the caller does.
/// Threads: one thread calls, and blocks. Errors name the worker.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "base/result.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "train/wire.h"

namespace recua::train {

struct WorkerGroupOptions {
  std::vector<net::Endpoint> workers;
  net::Duration connect_timeout = std::chrono::seconds(10);
  rpc::ControlOptions control;
  std::string shared_memory_host;             // Told to workers; empty: none.
  std::vector<rpc::RdmaPortInfo> rdma_ports;  // Told to workers.
};

/// What a session trains, and where its numbers come from and go to. The spans and shards outlive
/// it; nobody else touches gradients between send_step() and the end of wait_step().
struct TrainingRun {
  RankTask task;                       // Rank and number of ranks are filled in.
  std::vector<std::byte> hyperparams;  // As shape_gguf() makes it.
  const Shards* shards = nullptr;      // For as many ranks as there are workers left.
  std::span<const float> params;
  std::span<const float> m;
  std::span<const float> v;
  std::span<float> gradients;
};

class WorkerGroup {
 public:
  /// loop: nobody else runs it; env is made with it. Both outlive this.
  WorkerGroup(boost::asio::io_context& loop, net::Env env, WorkerGroupOptions options);
  WorkerGroup(const WorkerGroup&) = delete;
  WorkerGroup& operator=(const WorkerGroup&) = delete;
  ~WorkerGroup();  // Drops the connections; workers notice and clean up.

  /// To all workers. kUnavailable, kTimeout; kUnsupported: a worker is too old.
  Result<void> connect();
  /// Workers that have not been lost. From any time on: they only become fewer.
  [[nodiscard]] std::uint32_t n_left();

  /// Begins a session on all workers that are left, which are the ranks in their order.
  Result<void> open(const TrainingRun& run);
  /// steps[r]: of rank r. The group's part in it is done when wait_step() returns.
  Result<void> send_step(const std::vector<RankStep>& steps);
  /// Waits for the gradients; what each rank adds to the step's numbers.
  Result<std::vector<RankSums>> wait_step();
  /// After an error: waits until it is known who is lost (as long as heartbeats need, or not at all
  /// if somebody is), and ends the session on the others. Whether somebody was lost.
  bool settle();
  /// Ends the session on all workers, shortly.
  void close();

 private:
  struct Peer;
  using Reply = Result<wire::ControlMessage>;

  /// Runs a coroutine on the loop and waits for it.
  template <class T>
  T run(boost::asio::awaitable<T> coroutine);
  boost::asio::awaitable<Result<void>> connect_all();
  boost::asio::awaitable<Result<void>> connect_to(Peer& peer);
  boost::asio::awaitable<Result<void>> open_all(const TrainingRun& run);
  boost::asio::awaitable<Result<void>> open_on(Peer& peer);
  boost::asio::awaitable<Result<void>> send_state(Peer& peer);
  boost::asio::awaitable<Result<void>> link(Peer& from, const Peer& to);
  boost::asio::awaitable<Result<void>> start_on(Peer& peer);
  boost::asio::awaitable<Result<void>> close_on(Peer& peer, net::Duration timeout);
  boost::asio::awaitable<bool> close_all(net::Duration timeout);
  boost::asio::awaitable<bool> settle_all();
  boost::asio::awaitable<Result<std::vector<RankSums>>> collect();
  boost::asio::awaitable<Reply> call(Peer& peer, wire::ControlMessage request,
                                     net::Duration timeout);
  Result<void> send_steps(const std::vector<RankStep>& steps);
  Reply take_gradient(Peer& peer, const wire::TrainGradient& piece);
  void take_notice(Peer& peer, const wire::ControlMessage& notice);
  void fail(Error error);
  [[nodiscard]] std::vector<Peer*> left() const;

  boost::asio::io_context& loop_;
  net::Env env_;
  WorkerGroupOptions options_;
  rpc::PeerInfo self_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> ranks_;  // Of the session.
  rpc::ChannelId id_;
  rpc::Secret secret_{};
  std::optional<TrainingRun> run_;
  std::optional<std::uint64_t> step_;  // That is waited for.
  std::optional<Error> failure_;       // Of the session.
  net::Event changed_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::jthread thread_;
};

}  // namespace recua::train
