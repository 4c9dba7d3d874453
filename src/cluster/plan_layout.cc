#include "cluster/plan_layout.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

namespace recua::cluster {
namespace {

// A micro-batch that fills pipelines of a few stages; only ratios between machines matter here.
constexpr std::uint32_t kTypicalMicroBatch = 128;

// Layers of mixed types differ in size: when a division by their average does not fit, stages that
// overflow get one layer less, so many times.
constexpr int kShrinksMax = 16;

bool same_size(const RankShare& a, const RankShare& b, const ModelShape& model) {
  return a.heads.size() == b.heads.size() && a.ffn.size() == b.ffn.size() &&
         a.vocab.size() == b.vocab.size() &&
         kv_heads_of(model, a.heads).size() == kv_heads_of(model, b.heads).size();
}

void set_layers(SplitPlan& plan, const std::vector<std::uint32_t>& counts) {
  std::uint32_t next = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    plan.stages[s].layers = {.begin = next, .end = next + counts[s]};
    next += counts[s];
  }
}

/// Who takes the next layer: (key, stage), smallest first.
using Queue = std::priority_queue<std::pair<double, std::size_t>,
                                  std::vector<std::pair<double, std::size_t>>, std::greater<>>;

}  // namespace

PlanLayout::PlanLayout(StepModel& model, const Workload& workload, const MemoryOptions& memory)
    : model_(model),
      workload_(workload),
      memory_(memory),
      prefill_work_{
          .n_rows = std::min({kTypicalMicroBatch, workload.n_prompt, workload.n_ubatch_max}),
          .context = workload.n_prompt / 2.0,
          .n_sequences = 1,
          .n_outputs = 1},
      decode_work_{.n_rows = 1,
                   .context = workload.n_prompt + workload.n_generate / 2.0,
                   .n_sequences = 1,
                   .n_outputs = 1} {
  LayerBytes sum;
  bytes_before_.push_back(sum);
  for (const LayerShape& layer : model.model().layers) {
    sum += layer_bytes(layer);
    bytes_before_.push_back(sum);
  }
}

double PlanLayout::seconds_alone(std::uint32_t machine) {
  const IndexRange all = {.begin = 0, .end = model_.model().n_layers()};
  const double n_batches = static_cast<double>(workload_.n_prompt) / prefill_work_.n_rows;
  return n_batches * model_.whole_layers_seconds(machine, all, prefill_work_) +
         workload_.n_generate * model_.whole_layers_seconds(machine, all, decode_work_);
}

bool PlanLayout::possible(const Grouping& grouping) const {
  const auto too_many = [this](const std::vector<std::uint32_t>& machines) {
    return machines.empty() || machines.size() > model_.model().n_heads;
  };
  return !grouping.empty() && grouping.size() <= model_.model().n_layers() &&
         std::none_of(grouping.begin(), grouping.end(), too_many);
}

std::vector<double> PlanLayout::rank_weights(const std::vector<std::uint32_t>& machines,
                                             LayerBalance balance) {
  if (machines.size() == 1) return {1.0};
  const IndexRange all = {.begin = 0, .end = model_.model().n_layers()};
  const StepWork& work = balance == LayerBalance::kPrefill ? prefill_work_ : decode_work_;
  std::vector<double> out;
  out.reserve(machines.size());
  for (const std::uint32_t machine : machines) {
    out.push_back(balance == LayerBalance::kMemory
                      ? 1.0 + static_cast<double>(model_.cluster().machines[machine].memory_bytes)
                      : 1.0 / model_.whole_layers_seconds(machine, all, work));
  }
  return out;
}

PlanLayout::StageCost PlanLayout::stage_cost(StagePlan stage, LayerBalance balance, bool is_first,
                                             bool is_last) {
  const ModelShape& model = model_.model();
  const std::uint32_t n_layers = model.n_layers();
  const double n = n_layers;
  StageCost out;

  // Memory: what is needed without layers, and a layer's average.
  std::uint64_t most = n_layers;
  for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
    const std::uint64_t memory = model_.cluster().machines[stage.ranks[r].machine].memory_bytes;
    const auto before = [&](std::size_t i) {
      return model_.cluster().machines[stage.ranks[i].machine].memory_bytes == memory &&
             same_size(stage.ranks[r], stage.ranks[i], model);
    };
    if (r > 0 && before(r - 1)) continue;
    // A range that touches the ends this stage has, and no others.
    stage.layers = {.begin = is_first ? 0U : 1U, .end = is_last ? n_layers : 1U};
    const MemoryNeed ends = memory_need(model, LayerBytes{}, stage, r, memory_);
    stage.layers = {.begin = 1, .end = n_layers + 1};
    const MemoryNeed middle = memory_need(model, bytes_before_.back(), stage, r, memory_);
    const std::uint64_t fixed = ends.weights + ends.working;
    const std::uint64_t layers = middle.weights + middle.cache;
    if (memory < fixed)
      most = 0;
    else if (layers > 0)
      most = std::min(most, (memory - fixed) * n_layers / layers);
  }
  out.n_layers_max = static_cast<std::uint32_t>(most);

  if (balance == LayerBalance::kMemory) {
    out.layer_seconds = most == 0 ? 1.0 : 1.0 / static_cast<double>(most);
    return out;
  }
  // Time: a middle stage with all layers but the ends', and what the end adds.
  const StepWork& work = balance == LayerBalance::kPrefill ? prefill_work_ : decode_work_;
  StepWork no_output = work;
  no_output.n_outputs = work.n_rows;
  stage.layers = {.begin = 0, .end = n_layers > 1 ? n_layers - 1 : n_layers};
  out.layer_seconds = model_.stage(stage, no_output).total() / std::max(n - 1.0, 1.0);
  if (is_last) {
    stage.layers = {.begin = n_layers - 1, .end = n_layers};
    out.end_seconds = std::max(model_.stage(stage, work).total() - out.layer_seconds, 0.0);
  }
  return out;
}

namespace {

/// Gives every stage one layer and the others one by one to the stage that is done first with it,
/// or to the fastest stage. False: they do not all find a place.
template <class StageCost>
bool divide_layers(const std::vector<StageCost>& costs, std::uint32_t n_layers, bool fastest_first,
                   std::vector<std::uint32_t>& counts) {
  counts.assign(costs.size(), 1);
  auto left = n_layers - static_cast<std::uint32_t>(costs.size());
  const auto key = [&](std::size_t s) {
    return fastest_first ? costs[s].layer_seconds
                         : costs[s].end_seconds + costs[s].layer_seconds * (counts[s] + 1);
  };
  Queue queue;
  for (std::size_t s = 0; s < costs.size(); ++s) {
    if (costs[s].n_layers_max < 1) return false;
    if (costs[s].n_layers_max > 1) queue.emplace(key(s), s);
  }
  while (left > 0 && !queue.empty()) {
    const std::size_t s = queue.top().second;
    queue.pop();
    ++counts[s];
    --left;
    if (counts[s] < costs[s].n_layers_max) queue.emplace(key(s), s);
  }
  return left == 0;
}

}  // namespace

std::optional<SplitPlan> PlanLayout::build(const Grouping& grouping, LayerBalance balance) {
  if (!possible(grouping)) return std::nullopt;
  SplitPlan plan;
  std::vector<StageCost> costs;
  for (std::size_t s = 0; s < grouping.size(); ++s) {
    StagePlan stage;
    stage.ranks = divide_stage(model_.model(), rank_weights(grouping[s], balance));
    for (std::size_t r = 0; r < grouping[s].size(); ++r) stage.ranks[r].machine = grouping[s][r];
    costs.push_back(stage_cost(stage, balance, s == 0, s + 1 == grouping.size()));
    plan.stages.push_back(std::move(stage));
  }
  std::vector<std::uint32_t> counts;
  for (int shrinks = 0; shrinks < kShrinksMax; ++shrinks) {
    if (!divide_layers(costs, model_.model().n_layers(), balance == LayerBalance::kFastestFirst,
                       counts)) {
      return std::nullopt;
    }
    set_layers(plan, counts);
    bool all_fit = true;
    for (std::size_t s = 0; s < plan.stages.size(); ++s) {
      bool stage_fits = true;
      for (std::size_t r = 0; r < plan.stages[s].ranks.size() && stage_fits; ++r) {
        stage_fits = rank_fits(plan.stages[s], r);
      }
      if (stage_fits) continue;
      all_fit = false;
      costs[s].n_layers_max = counts[s] - 1;
    }
    if (all_fit) return plan;
  }
  return std::nullopt;
}

SplitPlan PlanLayout::by_weights(const Grouping& grouping,
                                 const std::vector<double>& weights) const {
  SplitPlan plan;
  std::vector<double> of_stages;
  for (const std::vector<std::uint32_t>& machines : grouping) {
    std::vector<double> own;
    for (const std::uint32_t machine : machines) own.push_back(weights[machine]);
    of_stages.push_back(std::accumulate(own.begin(), own.end(), 0.0));
    StagePlan stage;
    stage.ranks = divide_stage(model_.model(), own);
    for (std::size_t r = 0; r < machines.size(); ++r) stage.ranks[r].machine = machines[r];
    plan.stages.push_back(std::move(stage));
  }
  const std::vector<IndexRange> layers = divide(model_.model().n_layers(), 1, of_stages);
  for (std::size_t s = 0; s < layers.size(); ++s) plan.stages[s].layers = layers[s];
  return plan;
}

bool PlanLayout::rank_fits(const StagePlan& stage, std::size_t rank) const {
  const RankShare& share = stage.ranks[rank];
  const std::uint64_t memory = model_.cluster().machines[share.machine].memory_bytes;
  if (rank > 0 && same_size(share, stage.ranks[rank - 1], model_.model()) &&
      model_.cluster().machines[stage.ranks[rank - 1].machine].memory_bytes == memory) {
    return true;  // As the one before was.
  }
  const LayerBytes layers = bytes_before_[stage.layers.end] - bytes_before_[stage.layers.begin];
  return memory_need(model_.model(), layers, stage, rank, memory_).total() <= memory;
}

bool PlanLayout::fits(const SplitPlan& plan) const {
  for (const StagePlan& stage : plan.stages) {
    for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
      if (!rank_fits(stage, r)) return false;
    }
  }
  return true;
}

}  // namespace recua::cluster
