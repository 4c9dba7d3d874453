#include "cluster/plan_slices.h"

#include <utility>

#include <fmt/format.h>

namespace recua::cluster {
namespace {

model::Range to_range(IndexRange range) { return {.begin = range.begin, .end = range.end}; }

std::vector<model::Share> shares_of(const StagePlan& stage, const model::HyperParams& hp) {
  const std::uint32_t n_group = hp.n_heads / hp.n_kv_heads;
  std::vector<model::Share> shares;
  for (const RankShare& rank : stage.ranks) {
    shares.push_back({.heads = to_range(rank.heads),
                      .kv_heads = {.begin = rank.heads.begin / n_group,
                                   .end = (rank.heads.end + n_group - 1) / n_group},
                      .ffn = to_range(rank.ffn),
                      .vocab = to_range(rank.vocab)});
  }
  return shares;
}

}  // namespace

Result<PlannedSlices> slices_of(const SplitPlan& plan, const model::HyperParams& hyperparams) {
  PlannedSlices out;
  const std::size_t n_ranks = plan.stages.front().ranks.size();
  out.n_ranks = static_cast<std::uint32_t>(n_ranks);
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const StagePlan& stage = plan.stages[s];
    if (stage.ranks.size() != n_ranks) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("stages[{}] has {} ranks and stages[0] has {}: every stage needs the "
                      "same number to be run",
                      s, stage.ranks.size(), n_ranks)};
    }
    model::Slice slice = {.layer_begin = stage.layers.begin,
                          .layer_end = stage.layers.end,
                          .n_layers = hyperparams.n_layers,
                          .rank = 0,
                          .n_ranks = out.n_ranks};
    if (n_ranks > 1) slice.shares = shares_of(stage, hyperparams);
    if (auto checked = model::check_slice(slice, hyperparams); !checked.ok()) {
      return std::move(checked).error().within(fmt::format("stages[{}]", s));
    }
    for (const RankShare& rank : stage.ranks) {
      out.machines.push_back(rank.machine);
      out.slices.push_back(slice);
      ++slice.rank;
    }
  }
  return out;
}

}  // namespace recua::cluster
