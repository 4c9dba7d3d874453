#pragma once
/// Workers that compute the gradients of recua train: their flags, and everything they stand on.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "base/result.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "cli/local_workers.h"
#include "net/connection.h"
#include "net/real_clock.h"
#include "train/distributed_trainer.h"
#include "train/worker_group.h"

namespace recua::cli {

struct TrainWorkersFlags {
  ClusterFlags cluster;
  LinkFlags links;

  void add(CLI::App& app);
  /// kInvalidArgument: names the flag.
  [[nodiscard]] Result<void> check();
  [[nodiscard]] bool any() const { return cluster.any(); }
};

class TrainWorkers {
 public:
  /// Starts local workers if the flags say so (n_threads each; 0: the cores divided among them) and
  /// connects to all. Errors name the worker.
  static Result<std::unique_ptr<TrainWorkers>> connect(const TrainWorkersFlags& flags,
                                                       std::uint32_t n_threads);
  ~TrainWorkers();

  /// Before the first step; as DistributedTrainer::create(). trainer outlives this.
  Result<void> begin(train::Trainer& trainer, const train::ModelShape& shape,
                     std::vector<std::byte> hyperparams);
  /// As Trainer::step(), by the workers.
  Result<train::StepReport> step() { return trainer_->step(); }
  [[nodiscard]] std::uint32_t n_workers() const { return trainer_->n_workers(); }

 private:
  TrainWorkers() = default;

  // Members die from the bottom up.
  LocalWorkers local_;
  boost::asio::io_context loop_{1};
  net::RealClock clock_;
  std::unique_ptr<net::Network> network_;
  std::unique_ptr<train::WorkerGroup> group_;
  std::optional<train::DistributedTrainer> trainer_;
};

}  // namespace recua::cli
