// Workers and a coordinator of a training run over real sockets, all in one process, run for the
// thread sanitizer as well. tests/e2e/test_distributed.py has them as processes that are killed.
#include <cmath>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "cluster/worker.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"
#include "train/distributed_trainer.h"
#include "train/model_file.h"
#include "train/test_run.h"
#include "train/train_session.h"

namespace recua::train {
namespace {

namespace asio = boost::asio;

net::Env make_env(asio::io_context& loop, net::Clock& clock, net::Network& network) {
  net::Env env;
  env.executor = loop.get_executor();
  env.clock = &clock;
  env.network = &network;
  env.random = [] {
    std::random_device device;
    return (std::uint64_t{device()} << 32U) | device();
  };
  return env;
}

/// A worker with its control loop on a thread of its own.
class WorkerThread {
 public:
  explicit WorkerThread(std::uint64_t memory_bytes = 0) : network_(loop_.get_executor()) {
    listener_ = *network_.listen({.host = "127.0.0.1", .port = 0});
    cluster::WorkerOptions options;
    options.name = listener_->endpoint().to_string();
    options.cache_dir = scratch_.path();
    options.memory_bytes = memory_bytes;
    options.make_training = training_factory(1);
    const auto no_device = []() -> Result<std::unique_ptr<compute::Device>> {
      return Error{ErrorCode::kUnsupported, "no device here"};
    };
    worker_ = std::make_unique<cluster::Worker>(make_env(loop_, clock_, network_), offload_,
                                                no_device, options);
    asio::co_spawn(loop_, worker_->serve(*listener_), asio::detached);
    thread_ = std::jthread([this] { loop_.run(); });
  }
  WorkerThread(const WorkerThread&) = delete;
  WorkerThread& operator=(const WorkerThread&) = delete;
  ~WorkerThread() {
    stop();
    thread_ = {};
  }

  [[nodiscard]] net::Endpoint endpoint() const { return listener_->endpoint(); }
  /// Drops its connections, as a process that dies.
  void stop() {
    asio::post(loop_, [this] {
      worker_->stop();
      listener_->close();
    });
  }

 private:
  ScratchFolder scratch_;
  asio::io_context loop_{1};
  net::RealClock clock_;
  net::TcpNetwork network_;
  cluster::ThreadOffload offload_{1};
  std::unique_ptr<net::Listener> listener_;
  std::unique_ptr<cluster::Worker> worker_;
  std::jthread thread_;
};

class DistributedTest : public TestRun {
 protected:
  /// Everything that a run over workers stands on.
  struct Run {
    explicit Run(const std::vector<net::Endpoint>& workers) : network(loop.get_executor()) {
      WorkerGroupOptions options;
      options.workers = workers;
      group =
          std::make_unique<WorkerGroup>(loop, make_env(loop, clock, network), std::move(options));
    }
    asio::io_context loop{1};
    net::RealClock clock;
    net::TcpNetwork network;
    std::unique_ptr<WorkerGroup> group;
    std::optional<DistributedTrainer> trainer;
  };

  std::vector<net::Endpoint> start_workers(int n) {
    std::vector<net::Endpoint> out;
    for (int i = 0; i < n; ++i) {
      workers_.push_back(std::make_unique<WorkerThread>());
      out.push_back(workers_.back()->endpoint());
    }
    return out;
  }
  Result<void> begin(Run& run, Trainer& trainer) {
    RECUA_RETURN_IF_ERROR(run.group->connect());
    RECUA_ASSIGN_OR_RETURN(run.trainer, DistributedTrainer::create(trainer, *run.group, shape_,
                                                                   shape_gguf(shape_, {})));
    return ok();
  }
  Trainer begun(Team& team) {
    Trainer out = trainer(team);
    out.layout().initialize(5, out.params());
    return out;
  }

  std::vector<std::unique_ptr<WorkerThread>> workers_;
};

TEST_F(DistributedTest, TrainsAsOneProcessAndGoesOnWhenWorkersStop) {
  Team one = team(1);
  Trainer alone = begun(one);
  Trainer led = begun(one);
  Run run(start_workers(3));
  const auto started = begin(run, led);
  ASSERT_TRUE(started.ok()) << started.error().message;
  // A step whose gradients had come before the worker stopped counts.
  const std::uint32_t expected_workers[] = {3, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0};
  for (std::size_t i = 0; i < 12; ++i) {
    if (i == 3 || i == 6 || i == 9) {
      workers_.back()->stop();
      workers_.pop_back();
    }
    const auto report = run.trainer->step();
    ASSERT_TRUE(report.ok()) << report.error().message;
    const auto expected = alone.step();
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(report->step, i + 1);
    EXPECT_EQ(report->n_tokens, expected->n_tokens);
    EXPECT_EQ(report->lr, expected->lr);
    EXPECT_NEAR(report->loss, expected->loss, 1e-3) << "step " << i + 1;
    EXPECT_NEAR(report->grad_norm, expected->grad_norm, 1e-2 * expected->grad_norm);
    EXPECT_LE(run.trainer->n_workers(), expected_workers[i]);
  }
  EXPECT_EQ(run.trainer->n_workers(), 0U);
  EXPECT_EQ(led.run().position, alone.run().position);
}

TEST_F(DistributedTest, AWorkerWithoutMemoryIsNamed) {
  Team one = team(1);
  Trainer led = begun(one);
  WorkerThread poor(100'000);
  Run run({poor.endpoint()});
  ASSERT_TRUE(begin(run, led).ok());
  const auto refused = run.trainer->step();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(refused.error().message.find(poor.endpoint().to_string()), std::string::npos)
      << refused.error().message;
}

TEST_F(DistributedTest, MoreExamplesThanAWorkerTakesAreRefused) {
  Team one = team(1);
  options_.batch = 1;
  options_.accumulate = kStepExamplesMax + 1;
  Trainer led = begun(one);
  Run run(start_workers(1));
  const auto refused = begin(run, led);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("65537 examples"), std::string::npos)
      << refused.error().message;
}

TEST_F(DistributedTest, FewerExamplesThanWorkersAreRefused) {
  Team one = team(1);
  options_.batch = 2;
  Trainer led = begun(one);
  Run run(start_workers(3));
  const auto refused = begin(run, led);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace recua::train
