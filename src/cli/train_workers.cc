#include "cli/train_workers.h"

#include <algorithm>
#include <utility>

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "cli/run_loop.h"
#include "net/tcp/tcp_network.h"
#include "sys/topology.h"

namespace recua::cli {

void TrainWorkersFlags::add(CLI::App& app) {
  app.add_option("--workers", cluster.workers_text,
                 "Compute the gradients on these machines, where `recua worker` runs")
      ->type_name("HOST:PORT,...");
  app.add_option("--local-workers", cluster.n_local_workers,
                 "Start this many workers on this machine, and stop them at the end")
      ->type_name("N");
  app.add_option("--worker-timeout", cluster.timeout_seconds,
                 "Seconds to wait for a worker to answer")
      ->capture_default_str()
      ->type_name("SECONDS");
  links.add(app);
}

Result<void> TrainWorkersFlags::check() {
  RECUA_RETURN_IF_ERROR(cluster.check());
  return links.check();
}

Result<std::unique_ptr<TrainWorkers>> TrainWorkers::connect(const TrainWorkersFlags& flags,
                                                            std::uint32_t n_threads) {
  // Which link runs on what is said once at the start.
  if (log_enabled(LogLevel::kWarning) && !log_enabled(LogLevel::kDebug)) {
    set_log_level(LogLevel::kInfo);
  }
  std::unique_ptr<TrainWorkers> out(new TrainWorkers);
  train::WorkerGroupOptions options;
  options.workers = flags.cluster.workers;
  options.connect_timeout = std::chrono::duration_cast<net::Duration>(
      std::chrono::duration<double>(flags.cluster.timeout_seconds));
  if (const std::uint32_t n = flags.cluster.n_local_workers; n > 0) {
    const auto n_cores =
        static_cast<std::uint32_t>(sys::default_thread_count(sys::detect_topology()));
    const std::uint32_t n_each = n_threads != 0 ? n_threads : std::max(1U, n_cores / n);
    RECUA_ASSIGN_OR_RETURN(out->local_,
                           LocalWorkers::start(n, {}, n_each, flags.links.arguments()));
    options.workers = out->local_.endpoints();
  }
  auto network = std::make_unique<net::TcpNetwork>(out->loop_.get_executor());
  out->network_ = std::move(network);
  out->group_ = std::make_unique<train::WorkerGroup>(
      out->loop_, real_env(out->loop_, out->clock_, *out->network_), std::move(options));
  RECUA_RETURN_IF_ERROR(out->group_->connect());
  return out;
}

TrainWorkers::~TrainWorkers() {
  if (group_ != nullptr) group_->close();
}

Result<void> TrainWorkers::begin(train::Trainer& trainer, const train::ModelShape& shape,
                                 std::vector<std::byte> hyperparams) {
  RECUA_ASSIGN_OR_RETURN(
      trainer_, train::DistributedTrainer::create(trainer, *group_, shape, std::move(hyperparams)));
  return ok();
}

}  // namespace recua::cli
