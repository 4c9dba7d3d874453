#pragma once
/// StepModel: how long a stage takes for a micro-batch, from the sizes of a model and the speeds of
/// machines. docs/planning.md tells the same in plain words.
///
/// A product of n tokens with a matrix takes the larger of bytes / memory bandwidth, and
///   sqrt(t1^2 - s^2 + (n s)^2), t1 = weights / decode speed, s = weights / speed for many tokens:
/// one token waits for its weights (t1), and of many a part of that hides behind their products.
/// (Experts: bytes of those that are touched, products of those that are used.) Attention takes the
/// larger of cached bytes / bandwidth and multiply-accumulates / attention speed. Each operator
/// costs a fixed time, rows that pass between operators their bytes / bandwidth. The ranks of a
/// stage wait for the slowest, then exchange partial sums twice per layer; sums of large micro-
/// batches over slow links travel mostly while others are computed.
///
/// Threads: none; keeps tables of what it was asked before, so one thread at a time.

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "cluster/split_plan.h"

namespace recua::cluster {

/// What a stage does with one micro-batch.
struct StepWork {
  std::uint32_t n_rows = 1;
  double context = 0.0;           // Tokens that a row sees, on average.
  std::uint32_t n_sequences = 1;  // Whose cached keys and values are read.
  std::uint32_t n_outputs = 1;    // Rows whose logits the last stage computes.
};

struct StageSeconds {
  double compute = 0.0;         // Of the slowest rank.
  double exchange = 0.0;        // Partial sums among the ranks, beyond what computing hides.
  std::vector<double> ranks{};  // Each rank's own computing.

  [[nodiscard]] double total() const { return compute + exchange; }
};

/// From one stage to the next, or to and from the coordinator.
struct HopSeconds {
  double busy = 0.0;      // The sender's bytes on the link.
  double flight = 0.0;    // Latency; nobody is busy.
  bool overlaps = false;  // The sender computes on while its card sends.
};

/// Sum of partial results of `bytes` over n ranks, on links at least as good as these: one-shot
/// (everybody sends all to everybody) or in two halves (everybody sums a part, then hands it
/// round), whichever is faster.
double all_reduce_seconds(double bytes, std::size_t n_ranks, const LinkSpec& link);

/// Operators of a layer's forward pass, each of which has a fixed cost.
double operators_per_layer(const ModelShape& model);

/// How many machines of a host are at work at the same time, per machine of a plan: those of its
/// own stage (all_stages false) or all. Only machines that share a host count.
std::vector<std::uint32_t> active_per_host(const ClusterShape& cluster, const SplitPlan& plan,
                                           bool all_stages);

class StepModel {
 public:
  /// Both outlive the StepModel.
  StepModel(const ModelShape& model, const ClusterShape& cluster);

  [[nodiscard]] const ModelShape& model() const { return model_; }
  [[nodiscard]] const ClusterShape& cluster() const { return cluster_; }

  /// active: active_per_host() of the plan, by machine; empty: each machine alone.
  [[nodiscard]] StageSeconds stage(const StagePlan& stage, const StepWork& work,
                                   std::span<const std::uint32_t> active = {});

  /// One rank's computing, with the whole of each layer [begin, end): what shares are balanced by.
  [[nodiscard]] double whole_layers_seconds(std::uint32_t machine, IndexRange layers,
                                            const StepWork& work, std::uint32_t n_active = 1);

  [[nodiscard]] HopSeconds hop(const StagePlan& from, const StagePlan& to,
                               std::uint32_t n_rows) const;
  /// From the coordinator to a stage, or back.
  [[nodiscard]] double coordinator_seconds(const StagePlan& stage) const;

 private:
  /// Sums over layers [0, l) for n rows on a class: entry l of each.
  struct Table {
    std::vector<double> heads, kv, ffn;
    double fixed = 0.0;   // Of each layer, on every rank.
    double output = 0.0;  // Output matrix and what belongs to it, whole.
  };

  std::uint32_t class_of(std::uint32_t machine, std::uint32_t n_active);
  const Table& table(std::uint32_t machine_class, std::uint32_t n_rows);
  [[nodiscard]] double matrix_seconds(const MachineSpeed& speed, const MatrixShape& matrix,
                                      double touched, double used) const;
  double rank_seconds(std::uint32_t machine_class, const StagePlan& stage, const RankShare& share,
                      const StepWork& work);
  [[nodiscard]] double attention_seconds(const MachineSpeed& speed, double kv_share,
                                         double head_share, const StepWork& work) const;
  [[nodiscard]] LinkSpec worst_link(const StagePlan& a, const StagePlan& b) const;
  [[nodiscard]] static bool computes_meanwhile(double rows, double row_bytes, double sum_seconds);
  [[nodiscard]] double exchange_seconds(const StagePlan& stage, const StepWork& work,
                                        double compute) const;

  const ModelShape& model_;
  const ClusterShape& cluster_;
  std::vector<MachineSpeed> classes_;       // Speeds with their host's limits, equal ones once.
  std::vector<std::uint32_t> class_alone_;  // Per machine.
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> class_shared_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Table> tables_;
};

}  // namespace recua::cluster
