#pragma once
/// Coordinator: brings a model onto workers. It handshakes with each, plans who holds what, tells
/// them to load, answers their requests for missing chunks, has the channels opened and hands over
/// a RemoteExecutor. It sends the plan, never the weights unasked.
///
/// Threads: the loop of env.executor; hashing through the Offload.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/offload.h"
#include "cluster/plan.h"
#include "cluster/remote_executor.h"
#include "cluster/slice_weights.h"
#include "collective/wire_format.h"
#include "gguf/gguf_file.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

struct ClusterOptions {
  std::vector<net::Endpoint> workers;  // In the order of the layers.
  std::vector<double> split;           // As plan_ranks() takes it; empty: by memory, evenly.
  std::uint32_t n_ranks = 1;           // Workers that share their layers; consecutive ones.
  std::vector<model::Slice> slices;    // A plan made elsewhere, by worker; empty: plan_ranks().
  std::uint32_t n_batch = 2048;        // Most rows of a step.
  collective::WireFormat sums = collective::WireFormat::kF32;  // What ranks send each other.
  bool fetch_allowed = true;        // Workers may ask us for chunks they do not have.
  bool push_chunks = true;          // On channels of their own, where workers know that.
  bool verify = false;              // Hash everything again.
  std::filesystem::path cache_dir;  // Remembered hashes.
  std::size_t n_threads = 1;        // For hashing.
  net::Duration connect_timeout = std::chrono::seconds(10);
  rpc::ControlOptions control;
  const rpc::LinkPolicy* link_policy = nullptr;  // Outlives the cluster. Null: TCP only.
  std::string shared_memory_host;                // Told to workers; empty: none.
  std::vector<rpc::RdmaPortInfo> rdma_ports;     // Told to workers.
};

/// What is going on while a cluster starts. Called on the loop.
struct ClusterProgress {
  std::function<void(std::uint64_t done, std::uint64_t total)> hashing;
  std::function<void(std::uint64_t done, std::uint64_t total)> loading;  // Over all workers.
};

/// A model spread over workers: use executor(), then close().
class Cluster {
 public:
  Cluster() = default;
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  virtual ~Cluster() = default;  // Drops the connections; workers notice and clean up.

  [[nodiscard]] virtual RemoteExecutor& executor() = 0;
  [[nodiscard]] virtual const Plan& plan() const = 0;
  [[nodiscard]] virtual const SourceCounts& sources() const = 0;
  /// What both ends of all links did, as far as their workers said it. After close().
  [[nodiscard]] virtual std::vector<rpc::LinkStats> links() const = 0;
  /// Tells the workers to close their sessions and waits shortly for their answers.
  virtual boost::asio::awaitable<void> close() = 0;
};

/// file must stay unchanged on disk while workers load. The error names the worker it happened
/// with.
boost::asio::awaitable<Result<std::unique_ptr<Cluster>>> open_cluster(
    net::Env env, Offload& offload, std::shared_ptr<const gguf::GgufFile> file,
    model::SliceOptions slice_options, ClusterOptions options, ClusterProgress progress);

/// The tensors of a model as workers are told of them, hashed (blocking).
Result<std::vector<TensorSpec>> announce_tensors(const gguf::GgufFile& file,
                                                 const ChunkHasher& hasher,
                                                 const HashProgress& progress = {});

/// What the planner needs to know of a model.
Result<ModelCost> model_cost(const gguf::GgufFile& file, const model::HyperParams& hyperparams,
                             const model::SliceOptions& options);

}  // namespace recua::cluster
