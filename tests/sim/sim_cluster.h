#pragma once
/// SimCluster: a coordinator and workers in one thread, on a virtual clock and a simulated network,
/// running a real (small) model. The same code as in the program; only the loop, the clock, the
/// network and the randomness are others.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/offload.h"
#include "cluster/worker.h"
#include "gguf/gguf_file.h"
#include "model/executor.h"
#include "net/sim/sim_loop.h"
#include "net/sim/sim_network.h"

namespace recua {

struct SimClusterOptions {
  std::uint64_t seed = 1;
  int n_workers = 2;
  bool workers_have_file = true;
  std::uint32_t n_ubatch = 8;
  std::uint64_t worker_memory_bytes = std::uint64_t{1} << 30;
  std::filesystem::path model;
};

class SimCluster {
 public:
  explicit SimCluster(const SimClusterOptions& options);
  ~SimCluster();
  SimCluster(const SimCluster&) = delete;
  SimCluster& operator=(const SimCluster&) = delete;

  /// Brings the model onto the workers, over another view of the network if one is given.
  Result<void> open(net::Network* network = nullptr);
  /// Greedy continuation of a prompt, one step per token.
  Result<std::vector<model::TokenId>> generate(const std::vector<model::TokenId>& prompt, int n);
  /// All logits after the last token of one step.
  Result<std::vector<float>> logits(const std::vector<model::TokenId>& tokens);
  /// One step, from outside of a coroutine.
  Result<model::StepResult> step(model::StepBatch batch);
  void close();

  [[nodiscard]] net::SimLoop& loop() { return loop_; }
  [[nodiscard]] net::SimNetwork& network() { return network_; }
  [[nodiscard]] cluster::Cluster& cluster() { return *cluster_; }
  [[nodiscard]] cluster::Worker& worker(std::size_t i) { return *workers_.at(i)->worker; }
  [[nodiscard]] const std::filesystem::path& scratch() const { return scratch_; }
  static std::string worker_name(std::size_t i) { return "box" + std::to_string(i); }
  static constexpr std::uint16_t kPort = 7500;

 private:
  struct Box {
    std::unique_ptr<net::Listener> listener;
    std::unique_ptr<cluster::Worker> worker;
  };

  SimClusterOptions options_;
  std::filesystem::path scratch_;
  net::SimLoop loop_;
  net::SimNetwork network_;
  cluster::InlineOffload offload_;
  std::shared_ptr<const gguf::GgufFile> file_;
  std::vector<std::unique_ptr<Box>> workers_;
  std::unique_ptr<cluster::Cluster> cluster_;
};

/// The steps of a sequence without an engine: pages in order, one sequence.
model::StepBatch prompt_step(const std::vector<model::TokenId>& tokens, std::uint32_t position,
                             std::uint32_t page_tokens, model::OutputRequest::Kind kind);

}  // namespace recua
