#pragma once
/// The planner: the best way to spread a model over machines, what it will do, and what the others
/// would. A pure function: the same inputs give the same plan. Describes itself in
/// docs/planning.md.
///
/// "Best" is the plan that is done soonest with the workload: a prompt of n_prompt tokens and then
/// n_generate tokens for each of n_streams streams. Of equal ones that with fewer machines.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "cluster/predict.h"
#include "cluster/split_plan.h"

namespace recua::cluster {

struct SearchOptions {
  Workload workload = {};
  MemoryOptions memory = {};
  std::optional<std::uint32_t> n_stages = {};  // --pp
  std::optional<std::uint32_t> n_ranks = {};   // --tp
  std::vector<double> split = {};  // -ts: shares by machine, 0: left out. Empty: chosen.
  bool use_all = false;            // Leave nobody out.
  bool equal_ranks = false;        // Stages of the same number of ranks, as plan_slices.h needs.
  std::size_t n_plans_max = 8;     // The best and its runners-up.
};

struct RankedPlan {
  SplitPlan plan;
  Prediction prediction = {};
};

struct PlanChoice {
  std::vector<RankedPlan> plans;           // Best first, each another kind; at least one.
  std::string reason;                      // One sentence: why the first one.
  std::vector<std::string> warnings = {};  // Sentences.
  std::uint64_t n_considered = 0;          // Plans that fit into memory.
};

/// kInvalidArgument: an override that cannot be; says which values can. kResourceExhausted: the
/// model does not fit; says what each machine has and would need.
Result<PlanChoice> choose_plan(const ModelShape& model, const ClusterShape& cluster,
                               const SearchOptions& options);

/// A plan that somebody wrote down, with its prediction; warns when another one would be faster.
/// Errors as check_plan() and check_memory() give them.
Result<PlanChoice> judge_plan(const ModelShape& model, const ClusterShape& cluster,
                              const SearchOptions& options, SplitPlan plan);

}  // namespace recua::cluster
