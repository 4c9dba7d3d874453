#pragma once
/// From machines in groups to a whole plan: how many layers each group gets, and which share each
/// of its machines.

#include <cstdint>
#include <optional>
#include <vector>

#include "cluster/predict.h"
#include "cluster/split_plan.h"
#include "cluster/step_model.h"

namespace recua::cluster {

/// Machines of each stage, as indices into ClusterShape::machines.
using Grouping = std::vector<std::vector<std::uint32_t>>;

/// What layers and shares are divided by.
enum class LayerBalance {
  kPrefill,       // Equal times of a micro-batch of a prompt.
  kDecode,        // Equal times of a token.
  kFastestFirst,  // As many layers as fit on the fastest stage: best for a single stream.
  kMemory,        // Memory: fits whenever anything does.
};

class PlanLayout {
 public:
  /// model outlives the PlanLayout.
  PlanLayout(StepModel& model, const Workload& workload, const MemoryOptions& memory);

  /// Empty: does not fit into the machines' memory this way, or the grouping has more stages than
  /// layers or more ranks than heads.
  [[nodiscard]] std::optional<SplitPlan> build(const Grouping& grouping, LayerBalance balance);

  /// Layers and shares in proportion to weights (by machine, all > 0 in the grouping). Does not
  /// look at memory. The grouping has at most as many stages as layers, and ranks as heads.
  [[nodiscard]] SplitPlan by_weights(const Grouping& grouping,
                                     const std::vector<double>& weights) const;

  /// Whether every rank has the memory.
  [[nodiscard]] bool fits(const SplitPlan& plan) const;

  /// Seconds that a machine alone would take for a whole answer, whether it has the memory or not.
  [[nodiscard]] double seconds_alone(std::uint32_t machine);

 private:
  /// What a stage can do, for dividing layers.
  struct StageCost {
    double layer_seconds = 0.0;
    double end_seconds = 0.0;        // What the last stage has besides layers.
    std::uint32_t n_layers_max = 0;  // That fit, if layers were all alike.
  };
  [[nodiscard]] bool possible(const Grouping& grouping) const;
  [[nodiscard]] std::vector<double> rank_weights(const std::vector<std::uint32_t>& machines,
                                                 LayerBalance balance);
  [[nodiscard]] StageCost stage_cost(StagePlan stage, LayerBalance balance, bool is_first,
                                     bool is_last);
  [[nodiscard]] bool rank_fits(const StagePlan& stage, std::size_t rank) const;

  StepModel& model_;
  Workload workload_;
  MemoryOptions memory_;
  StepWork prefill_work_;
  StepWork decode_work_;
  std::vector<LayerBytes> bytes_before_;  // [n_layers + 1], sums.
};

}  // namespace recua::cluster
