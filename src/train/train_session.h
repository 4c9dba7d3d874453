#pragma once
/// TrainSession: a worker's session as one rank of a training run. docs/protocol.md, "Training".
///
/// Steps run one after another on a loop of its own, whose thread computes; the gradient of the
/// rank's shard goes to the coordinator from the control loop while the ranks share parameters.
/// Threads: the control loop's, unless it says otherwise. Shared, because a step that runs keeps
/// its session alive until it has really ended.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "cluster/rank_group.h"
#include "cluster/training_host.h"
#include "net/event.h"
#include "train/rank_trainer.h"
#include "train/wire.h"

namespace recua::train {

/// What WorkerOptions::make_training is to be: sessions that compute with n_threads.
cluster::TrainingFactory training_factory(std::size_t n_threads);

class TrainSession final : public cluster::TrainingSession,
                           public std::enable_shared_from_this<TrainSession> {
 public:
  struct Request {
    rpc::ChannelId id;
    rpc::Secret secret{};
    RankTask task;
    std::size_t n_threads = 1;
  };

  TrainSession(cluster::SessionEnv env, Request request, cluster::TrainingEvents events);
  ~TrainSession() override;

  [[nodiscard]] rpc::ChannelId id() const override { return request_.id; }
  [[nodiscard]] const rpc::Secret& secret() const override { return request_.secret; }
  [[nodiscard]] Result<rpc::RingShape> ring(const rpc::ChannelRequest& request) const override;
  Result<void> attach(std::unique_ptr<net::Connection> connection,
                      const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) override;
  Result<void> attach_out(cluster::ChannelEnd end) override;
  [[nodiscard]] std::uint64_t memory_bytes() const override { return memory_bytes_; }
  [[nodiscard]] bool loaded() const override { return touched_; }

  boost::asio::awaitable<Result<void>> open() override;
  Result<void> add_state(const wire::TrainState& piece) override;
  Result<void> start() override;
  void take_step(const wire::TrainStep& step) override;
  void close() override;
  boost::asio::awaitable<void> wait_until_ended(net::Duration timeout) override;

 private:
  [[nodiscard]] const RankOptions& options() const { return request_.task.options; }
  Result<void> allocate();
  Result<void> check_step(const wire::TrainStep& message) const;
  /// The whole of the session's life on its own loop.
  Result<void> run();
  void ended(const Result<void>& result);
  boost::asio::awaitable<void> send_gradient(std::uint64_t step, RankSums sums);
  void fail(const Error& error);

  cluster::SessionEnv env_;
  Request request_;
  cluster::TrainingEvents events_;
  std::uint64_t memory_bytes_ = 0;

  // Members die from the bottom up: the loop (joining its thread) before what it computes with.
  std::optional<Team> team_;
  std::unique_ptr<RankTrainer> trainer_;
  cluster::RankGroup group_;
  std::unique_ptr<cluster::StageLoop> loop_;
  bool opened_ = false;   // From here on trainer_ is there. The control loop's, as all these.
  bool touched_ = false;  // A step has touched all of the memory.
  std::uint64_t state_bytes_ = 0;  // That have come.
  bool busy_ = false;              // With a step whose gradient has not been sent.
  bool running_ = false;
  bool closed_ = false;
  net::Event ended_;

  std::mutex mutex_;  // Of what follows, which the own loop waits for.
  std::condition_variable changed_;
  std::optional<RankStep> next_;
  bool stop_ = false;
};

}  // namespace recua::train
