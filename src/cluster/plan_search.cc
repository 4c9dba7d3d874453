#include "cluster/plan_search.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "cluster/plan.h"
#include "cluster/plan_candidates.h"
#include "cluster/plan_layout.h"

namespace recua::cluster {
namespace {

// With more groups than this nobody is left out by group, only by speed.
constexpr std::size_t kGroupsMax = 16;

// Below this difference nothing is said about a plan being slower than another.
constexpr double kWorthAWarning = 1.02;

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// What plans are told apart by in the list of runners-up.
std::string key_of(const SplitPlan& plan) {
  return fmt::format("{} {}", kind_of(plan), plan.n_machines());
}

class Search {
 public:
  Search(const ModelShape& model, const ClusterShape& cluster, const SearchOptions& options)
      : model_(model),
        cluster_(cluster),
        options_(options),
        step_(model, cluster),
        layout_(step_, options.workload, options.memory) {
    limits_ = {.n_stages_max = model.n_layers(),
               .n_ranks_max = model.n_heads,
               .n_stages = options.n_stages,
               .n_ranks = options.n_ranks,
               .use_all = options.use_all,
               .equal_ranks = options.equal_ranks};
  }

  void run();
  void run_split(const std::vector<double>& split);
  /// The best of each kind, with their schedules run.
  [[nodiscard]] std::vector<RankedPlan> ranked();
  [[nodiscard]] std::uint64_t n_considered() const { return n_considered_; }
  /// A plan over everybody in proportion to memory, to show what is missing.
  [[nodiscard]] SplitPlan by_memory();
  [[nodiscard]] RankedPlan judged(SplitPlan plan) {
    const Prediction prediction = predict(step_, plan, options_.workload);
    return {.plan = std::move(plan), .prediction = prediction};
  }

 private:
  [[nodiscard]] std::vector<std::uint32_t> fastest_first();
  void try_all(std::span<const std::uint32_t> machines);
  void try_one(SplitPlan plan);
  void leave_out_groups(std::vector<std::uint32_t> machines);

  const ModelShape& model_;
  const ClusterShape& cluster_;
  const SearchOptions& options_;
  StepModel step_;
  PlanLayout layout_;
  GroupingLimits limits_;
  std::map<std::string, RankedPlan> best_;  // By key_of(), with estimates.
  double best_seconds_ = 0.0;               // 0: none yet.
  std::uint64_t n_considered_ = 0;
};

std::vector<std::uint32_t> Search::fastest_first() {
  std::vector<std::pair<double, std::uint32_t>> keyed;
  for (std::uint32_t m = 0; m < cluster_.machines.size(); ++m) {
    keyed.emplace_back(layout_.seconds_alone(m), m);
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<std::uint32_t> out;
  for (const auto& [seconds, machine] : keyed) out.push_back(machine);
  return out;
}

void Search::try_one(SplitPlan plan) {
  ++n_considered_;
  const Prediction prediction = estimate(step_, plan, options_.workload);
  if (best_seconds_ == 0.0 || prediction.answer_seconds < best_seconds_) {
    best_seconds_ = prediction.answer_seconds;
  }
  const auto [at, is_new] = best_.try_emplace(key_of(plan));
  if (!is_new && at->second.prediction.answer_seconds <= prediction.answer_seconds) return;
  at->second = {.plan = std::move(plan), .prediction = prediction};
}

void Search::try_all(std::span<const std::uint32_t> machines) {
  const auto try_grouping = [this](const Grouping& grouping) {
    SplitPlan before;
    bool any = false;
    for (const LayerBalance balance :
         {LayerBalance::kPrefill, LayerBalance::kDecode, LayerBalance::kFastestFirst}) {
      std::optional<SplitPlan> plan = layout_.build(grouping, balance);
      if (!plan || *plan == before) continue;
      any = true;
      before = *plan;
      try_one(std::move(*plan));
    }
    if (any) return;
    // Shares by speed need more memory than somebody has; shares by memory may not.
    if (std::optional<SplitPlan> plan = layout_.build(grouping, LayerBalance::kMemory)) {
      try_one(std::move(*plan));
    }
  };
  for_each_grouping(cluster_, machines, limits_, try_grouping);
}

/// Tries without each group of links, goes on without the one that was best left out, and so on: a
/// fast machine on a slow link would otherwise stand first in every order.
void Search::leave_out_groups(std::vector<std::uint32_t> machines) {
  while (true) {
    std::vector<std::uint32_t> groups;
    for (const std::uint32_t m : machines) groups.push_back(cluster_.machines[m].group);
    std::sort(groups.begin(), groups.end());
    groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
    if (groups.size() < 2 || groups.size() > kGroupsMax) return;
    std::vector<std::uint32_t> best_rest;
    for (const std::uint32_t group : groups) {
      std::vector<std::uint32_t> rest;
      for (const std::uint32_t m : machines) {
        if (cluster_.machines[m].group != group) rest.push_back(m);
      }
      const double before = best_seconds_;
      try_all(rest);
      if (before == 0.0 || best_seconds_ < before) best_rest = std::move(rest);
    }
    if (best_rest.empty()) return;
    machines = std::move(best_rest);
  }
}

void Search::run() {
  const std::vector<std::uint32_t> machines = fastest_first();
  try_all(machines);
  if (machines.size() > kExhaustiveMax && !options_.use_all) leave_out_groups(machines);
  SplitPlan everybody = by_memory();
  const std::size_t n_first = everybody.stages.front().ranks.size();
  const bool equal = std::all_of(everybody.stages.begin(), everybody.stages.end(),
                                 [&](const StagePlan& s) { return s.ranks.size() == n_first; });
  const bool wanted = !options_.n_stages && !options_.n_ranks && (equal || !options_.equal_ranks) &&
                      (!options_.use_all || everybody.n_machines() == machines.size());
  if (wanted && layout_.fits(everybody)) try_one(std::move(everybody));
}

/// The user's shares: every machine with one takes part, in the order given.
void Search::run_split(const std::vector<double>& split) {
  std::vector<std::uint32_t> machines;
  for (std::uint32_t m = 0; m < split.size(); ++m) {
    if (split[m] > 0.0) machines.push_back(m);
  }
  const auto n = static_cast<std::uint32_t>(machines.size());
  for (std::uint32_t n_stages = 1; n_stages <= std::min(n, model_.n_layers()); ++n_stages) {
    if (options_.n_stages && n_stages != *options_.n_stages) continue;
    if (n % n_stages != 0 || n / n_stages > model_.n_heads) continue;
    const std::uint32_t n_ranks = n / n_stages;
    if (options_.n_ranks && n_ranks != *options_.n_ranks) continue;
    Grouping grouping(n_stages);
    for (std::uint32_t i = 0; i < n; ++i) grouping[i / n_ranks].push_back(machines[i]);
    SplitPlan plan = layout_.by_weights(grouping, split);
    if (layout_.fits(plan)) try_one(std::move(plan));
  }
}

SplitPlan Search::by_memory() {
  // Stages of one machine while there are layers for them; the most memory first.
  std::vector<std::uint32_t> machines(cluster_.machines.size());
  std::iota(machines.begin(), machines.end(), 0U);
  std::sort(machines.begin(), machines.end(), [this](std::uint32_t a, std::uint32_t b) {
    const std::uint64_t x = cluster_.machines[a].memory_bytes;
    const std::uint64_t y = cluster_.machines[b].memory_bytes;
    return x != y ? x > y : a < b;
  });
  const std::size_t n_stages = std::min<std::size_t>(machines.size(), model_.n_layers());
  const std::size_t n_most = std::size_t{model_.n_layers()} * model_.n_heads;
  machines.resize(std::min(machines.size(), n_most));
  Grouping grouping(n_stages);
  for (std::size_t i = 0; i < machines.size(); ++i) grouping[i % n_stages].push_back(machines[i]);
  if (std::optional<SplitPlan> plan = layout_.build(grouping, LayerBalance::kMemory)) {
    return std::move(*plan);
  }
  std::vector<double> weights;
  for (const Machine& machine : cluster_.machines) {
    weights.push_back(1.0 + static_cast<double>(machine.memory_bytes));
  }
  return layout_.by_weights(grouping, weights);
}

std::vector<RankedPlan> Search::ranked() {
  // Estimates choose what is worth a schedule; twice as many as are shown, since they may change
  // places.
  std::vector<RankedPlan> plans;
  for (auto& [key, plan] : best_) plans.push_back(std::move(plan));
  best_.clear();
  const auto sooner = [](const RankedPlan& a, const RankedPlan& b) {
    const double x = a.prediction.answer_seconds;
    const double y = b.prediction.answer_seconds;
    if (x != y) return x < y;
    return a.plan.n_machines() < b.plan.n_machines();
  };
  std::sort(plans.begin(), plans.end(), sooner);
  const std::size_t n_run = std::min(plans.size(), 2 * options_.n_plans_max);
  // One machine is what a split has to beat, so it is always among them.
  const auto alone = std::find_if(plans.begin(), plans.end(), [](const RankedPlan& plan) {
    return plan.plan.n_machines() == 1;
  });
  if (alone != plans.end() && alone - plans.begin() >= static_cast<std::ptrdiff_t>(n_run)) {
    std::iter_swap(alone, plans.begin() + static_cast<std::ptrdiff_t>(n_run) - 1);
  }
  plans.resize(n_run);
  for (RankedPlan& plan : plans) {
    plan.prediction = predict(step_, plan.plan, options_.workload);
  }
  std::sort(plans.begin(), plans.end(), sooner);
  if (plans.size() > options_.n_plans_max) {
    const auto last = plans.begin() + static_cast<std::ptrdiff_t>(options_.n_plans_max) - 1;
    const auto one = std::find_if(
        last, plans.end(), [](const RankedPlan& plan) { return plan.plan.n_machines() == 1; });
    if (one != plans.end() && one != last) *last = std::move(*one);
    plans.resize(options_.n_plans_max);
  }
  return plans;
}

std::string milliseconds(double seconds) { return fmt::format("{:.1f} ms", 1e3 * seconds); }

std::string per_token(const Prediction& p) {
  std::string out = "a token takes " + milliseconds(1.0 / p.tokens_per_second);
  if (p.decode_exchange_seconds > 0.0) {
    out += fmt::format(", {} of them exchanging partial sums",
                       milliseconds(p.decode_exchange_seconds));
  }
  return out;
}

/// Whether an override is in the way of the search.
bool is_forced(const SearchOptions& options) {
  return options.n_stages || options.n_ranks || options.use_all || !options.split.empty();
}

std::string reason_of(const PlanChoice& choice, const ClusterShape& cluster, bool forced) {
  const RankedPlan& best = choice.plans.front();
  const RankedPlan* alone = nullptr;
  const RankedPlan* split = nullptr;
  for (const RankedPlan& plan : choice.plans) {
    if (plan.plan.n_machines() == 1 && alone == nullptr) alone = &plan;
    if (plan.plan.n_machines() > 1 && split == nullptr) split = &plan;
  }
  if (&best == alone) {
    const std::string& name = cluster.machines[best.plan.stages[0].ranks[0].machine].name;
    if (split == nullptr)
      return fmt::format("{} is what there is: {}", name, per_token(best.prediction));
    return fmt::format("{} alone is done soonest: there {}, and with {} {}", name,
                       per_token(best.prediction), kind_of(split->plan),
                       per_token(split->prediction));
  }
  if (alone == nullptr) {
    return fmt::format(
        "{} is done soonest of the {} ways that {}: {}", kind_of(best.plan), choice.n_considered,
        forced ? "were asked for" : "fit into memory, one machine's not being enough",
        per_token(best.prediction));
  }
  return fmt::format(
      "{} is done {:.2f} times as soon as one machine: {}, and there {}", kind_of(best.plan),
      alone->prediction.answer_seconds / best.prediction.answer_seconds, per_token(best.prediction),
      milliseconds(1.0 / alone->prediction.tokens_per_second));
}

Result<void> check_overrides(const ModelShape& model, const ClusterShape& cluster,
                             const SearchOptions& options) {
  const std::size_t n_machines = cluster.machines.size();
  if (n_machines == 0) return invalid("there are no machines to plan for");
  const std::uint32_t n_stages = options.n_stages.value_or(1);
  const std::uint32_t n_ranks = options.n_ranks.value_or(1);
  if (n_stages < 1 || n_stages > model.n_layers()) {
    return invalid(fmt::format("--pp is {}, but the model has {} layers: use 1 to {} stages",
                               n_stages, model.n_layers(), model.n_layers()));
  }
  if (n_ranks < 1 || n_ranks > model.n_heads) {
    return invalid(
        fmt::format("--tp is {}, but the model has {} query heads to divide: use 1 to "
                    "{} ranks",
                    n_ranks, model.n_heads, model.n_heads));
  }
  if (std::uint64_t{n_stages} * n_ranks > n_machines) {
    return invalid(fmt::format("--pp {} times --tp {} needs {} machines, but there are {}",
                               n_stages, n_ranks, std::uint64_t{n_stages} * n_ranks, n_machines));
  }
  if (options.split.empty()) return ok();
  if (options.split.size() != n_machines) {
    return invalid(fmt::format("--split has {} parts for {} machines; give one number per machine",
                               options.split.size(), n_machines));
  }
  std::size_t n_used = 0;
  for (const double part : options.split) {
    if (!(part >= 0.0) || part > 1e9) {
      return invalid(fmt::format("--split: {} is not a number from 0 to 1e9", part));
    }
    n_used += part > 0.0 ? 1 : 0;
  }
  if (n_used == 0) return invalid("--split gives no machine anything");
  if (n_used % (n_stages * n_ranks) != 0 ||
      (options.n_stages && options.n_ranks && n_used != std::size_t{n_stages} * n_ranks)) {
    return invalid(fmt::format("--split names {} machines, which --pp {} and --tp {} do not divide",
                               n_used, n_stages, n_ranks));
  }
  return ok();
}

void warn_if_slower(const RankedPlan& asked, const ModelShape& model, const ClusterShape& cluster,
                    const SearchOptions& options, PlanChoice& choice) {
  SearchOptions free = options;
  free.n_stages = free.n_ranks = std::nullopt;
  free.split.clear();
  free.use_all = false;
  const auto best = choose_plan(model, cluster, free);
  if (!best.ok()) return;
  const RankedPlan& other = best->plans.front();
  const double ratio = asked.prediction.answer_seconds / other.prediction.answer_seconds;
  if (ratio < kWorthAWarning) return;
  choice.warnings.push_back(
      fmt::format("the plan that was asked for takes {:.2f} times as long as {} would: {}", ratio,
                  kind_of(other.plan), describe(other.plan, cluster)));
}

/// Says who was left out, and what taking everybody would cost.
void warn_of_left_out(const ModelShape& model, const ClusterShape& cluster,
                      const SearchOptions& options, PlanChoice& choice) {
  const RankedPlan& best = choice.plans.front();
  const std::size_t n_left = cluster.machines.size() - best.plan.n_machines();
  if (n_left == 0) return;
  std::vector<bool> used(cluster.machines.size(), false);
  for (const StagePlan& stage : best.plan.stages) {
    for (const RankShare& rank : stage.ranks) used[rank.machine] = true;
  }
  constexpr std::size_t kNamesMax = 4;
  std::string names;
  std::size_t n_named = 0;
  for (std::size_t m = 0; m < used.size() && n_named < kNamesMax; ++m) {
    if (!used[m]) names += (n_named++ == 0 ? "" : ", ") + cluster.machines[m].name;
  }
  if (n_left > n_named) names += fmt::format(" and {} more", n_left - n_named);
  SearchOptions all = options;
  all.use_all = true;
  Search search(model, cluster, all);
  search.run();
  const std::vector<RankedPlan> everybody = search.ranked();
  std::string cost;
  if (!everybody.empty()) {
    cost = fmt::format("; with all machines an answer takes {:.2f} times as long ({})",
                       everybody.front().prediction.answer_seconds / best.prediction.answer_seconds,
                       kind_of(everybody.front().plan));
  }
  choice.warnings.push_back(fmt::format("fewer machines are faster: {} left out{}", names, cost));
}

}  // namespace

Result<PlanChoice> choose_plan(const ModelShape& model, const ClusterShape& cluster,
                               const SearchOptions& options) {
  RECUA_RETURN_IF_ERROR(check_overrides(model, cluster, options));
  Search search(model, cluster, options);
  if (options.split.empty()) {
    search.run();
  } else {
    search.run_split(options.split);
  }
  PlanChoice choice;
  choice.n_considered = search.n_considered();
  choice.plans = search.ranked();
  if (choice.plans.empty()) {
    std::uint64_t memory = 0;
    for (const Machine& machine : cluster.machines) memory += machine.memory_bytes;
    const std::uint64_t need =
        model.bytes() + options.memory.n_cache_tokens * model.kv_token_bytes * model.n_layers();
    const auto checked = check_memory(model, cluster, search.by_memory(), options.memory);
    if (checked.ok()) {
      return invalid(
          "no plan of the kind that was asked for fits into the machines' memory, or divides all "
          "of "
          "them: leave --pp, --tp, --split or --use-all away to see what does");
    }
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("{}; weights and cache need {} in all, the machines have {}: add a "
                             "machine, a smaller -c, or take a model with fewer bits",
                             checked.error().message, format_bytes(need), format_bytes(memory))};
  }
  choice.reason = reason_of(choice, cluster, is_forced(options));
  if (is_forced(options)) {
    warn_if_slower(choice.plans.front(), model, cluster, options, choice);
  } else {
    warn_of_left_out(model, cluster, options, choice);
  }
  return choice;
}

Result<PlanChoice> judge_plan(const ModelShape& model, const ClusterShape& cluster,
                              const SearchOptions& options, SplitPlan plan) {
  RECUA_RETURN_IF_ERROR(check_plan(model, cluster, plan));
  RECUA_RETURN_IF_ERROR(check_memory(model, cluster, plan, options.memory));
  Search search(model, cluster, options);
  PlanChoice choice;
  choice.n_considered = 1;
  choice.plans.push_back(search.judged(std::move(plan)));
  choice.reason = fmt::format("it was asked for: {}", per_token(choice.plans.front().prediction));
  warn_if_slower(choice.plans.front(), model, cluster, options, choice);
  return choice;
}

}  // namespace recua::cluster
