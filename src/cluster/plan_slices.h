#pragma once
/// From a SplitPlan, which the planner makes or a file holds, to the slices that workers are told
/// to load.

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "cluster/split_plan.h"
#include "model/hyperparams.h"
#include "model/slice.h"

namespace recua::cluster {

/// One entry per machine that takes part: stage by stage, within a stage rank by rank.
struct PlannedSlices {
  std::vector<std::uint32_t> machines = {};  // Indices into ClusterShape::machines.
  std::vector<model::Slice> slices = {};
  std::uint32_t n_ranks = 1;  // Of every stage.
};

/// plan has passed check_plan() for this model. kInvalidArgument: stages of different numbers of
/// ranks, which cannot be run yet; a share that a worker would refuse, as one without columns.
Result<PlannedSlices> slices_of(const SplitPlan& plan, const model::HyperParams& hyperparams);

}  // namespace recua::cluster
