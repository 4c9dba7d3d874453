#pragma once
/// SimCluster: a coordinator and workers in one thread, on a virtual clock and a simulated network,
/// running a real (small) model. The same code as in the program; only the loop, the clock, the
/// network and the randomness are others.

#include <filesystem>
#include <functional>
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
#include "net/verbs/fake_fabric.h"

namespace recua {

struct SimClusterOptions {
  std::uint64_t seed = 1;
  int n_workers = 2;
  bool workers_have_file = true;
  bool push_chunks = true;
  bool rdma = false;  // Each host has a card on one fake fabric: "card_home", "card_box0", ...
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
  /// Greedy continuation of a prompt, one step per token; before(i) is called before token i.
  Result<std::vector<model::TokenId>> generate(const std::vector<model::TokenId>& prompt, int n,
                                               const std::function<void(int)>& before = {});
  /// All logits after the last token of one step.
  Result<std::vector<float>> logits(const std::vector<model::TokenId>& tokens);
  /// One step, from outside of a coroutine.
  Result<model::StepResult> step(model::StepBatch batch);
  void close();
  /// What both ends of all links did, after close().
  [[nodiscard]] const std::vector<rpc::LinkStats>& links() const { return links_; }

  [[nodiscard]] net::SimLoop& loop() { return loop_; }
  [[nodiscard]] net::SimNetwork& network() { return network_; }
  [[nodiscard]] net::verbs::FakeFabric& fabric() { return fabric_; }
  [[nodiscard]] cluster::Cluster& cluster() { return *cluster_; }
  [[nodiscard]] cluster::Worker& worker(std::size_t i) { return *workers_.at(i)->worker; }
  [[nodiscard]] const std::filesystem::path& scratch() const { return scratch_; }
  static std::string worker_name(std::size_t i) { return "box" + std::to_string(i); }
  static constexpr std::uint16_t kPort = 7500;

 private:
  /// A host's card and what its links may use.
  struct Links {
    std::unique_ptr<net::verbs::Provider> provider;
    rpc::LinkPolicy policy;
  };
  /// Address 10.0.0.<number>.
  std::unique_ptr<Links> make_links(const std::string& host, int number);
  struct Box {
    std::unique_ptr<net::Listener> listener;
    std::unique_ptr<cluster::Worker> worker;
  };

  SimClusterOptions options_;
  std::filesystem::path scratch_;
  net::verbs::FakeFabric fabric_;
  std::unique_ptr<Links>
      home_links_;  // With the boxes' ones before the loop, on which ends of links may wait.
  std::vector<std::unique_ptr<Links>> box_links_;
  net::SimLoop loop_;
  net::SimNetwork network_;
  cluster::InlineOffload offload_;
  std::shared_ptr<const gguf::GgufFile> file_;
  std::vector<std::unique_ptr<Box>> workers_;
  std::unique_ptr<cluster::Cluster> cluster_;
  std::vector<rpc::LinkStats> links_;
};

/// The steps of a sequence without an engine: pages in order, one sequence.
model::StepBatch prompt_step(const std::vector<model::TokenId>& tokens, std::uint32_t position,
                             std::uint32_t page_tokens, model::OutputRequest::Kind kind);

}  // namespace recua
