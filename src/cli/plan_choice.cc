#include "cli/plan_choice.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "base/mapped_file.h"
#include "cli/plan_inputs.h"
#include "cli/plan_report.h"
#include "cluster/json_fields.h"
#include "cluster/model_shape.h"
#include "cluster/plan_file.h"
#include "cluster/plan_search.h"
#include "cluster/plan_slices.h"

namespace recua::cli {
namespace {

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// A machine that the plan may name, and where its worker is.
struct Candidate {
  std::string name;
  net::Endpoint endpoint;
};

/// The plan's names of the given workers ("box" may be box:7500), or all that it names.
Result<std::vector<Candidate>> candidates(const ClusterFlags& flags,
                                          const std::vector<std::string>& named) {
  std::vector<Candidate> out;
  for (const std::string& name : named) {
    auto endpoint = net::Endpoint::parse(name, kDefaultWorkerPort);
    if (!endpoint.ok()) continue;  // Not among the machines, then.
    const bool given =
        flags.workers.empty() ||
        std::find(flags.workers.begin(), flags.workers.end(), *endpoint) != flags.workers.end();
    if (given) out.push_back({.name = name, .endpoint = std::move(*endpoint)});
  }
  // Those that the plan leaves out are only for the message.
  for (const net::Endpoint& worker : flags.workers) {
    const bool known = std::any_of(out.begin(), out.end(), [&](const Candidate& candidate) {
      return candidate.endpoint == worker;
    });
    if (!known) out.push_back({.name = worker.to_string(), .endpoint = worker});
  }
  if (out.empty()) {
    return invalid(fmt::format(
        "{}: names {}, which is no address of a worker: make the plan with `recua plan --workers`",
        flags.plan_file, named.empty() ? "nobody" : named.front()));
  }
  return out;
}

/// The flags' workers and slices from a plan; endpoints by machine of the plan.
Result<void> take(ClusterFlags& flags, const cluster::SplitPlan& plan,
                  const std::vector<Candidate>& machines, const model::HyperParams& hyperparams,
                  model::SliceOptions& options) {
  auto planned = cluster::slices_of(plan, hyperparams);
  const std::string where = flags.is_plan_named() ? flags.plan_file : "the plan";
  if (!planned.ok()) return std::move(planned).error().within(where);
  std::vector<net::Endpoint> workers;
  for (const std::uint32_t machine : planned->machines) {
    workers.push_back(machines[machine].endpoint);
  }
  RECUA_RETURN_IF_ERROR(check_worker_list(where, workers));
  if (plan.n_ubatch != 0) options.n_ubatch = std::min(options.n_ubatch, plan.n_ubatch);
  flags.workers = std::move(workers);
  flags.slices = std::move(planned->slices);
  flags.n_ranks = planned->n_ranks;
  return ok();
}

Result<void> take_file(ClusterFlags& flags, const cluster::ModelShape& model,
                       const model::HyperParams& hyperparams, model::SliceOptions& options) {
  const std::string& where = flags.plan_file;
  RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(where, cluster::kJsonBytesMax));
  RECUA_ASSIGN_OR_RETURN(const std::vector<std::string> named,
                         cluster::machines_of_plan(text, where));
  const bool is_here = flags.workers.empty() && named == std::vector<std::string>{kPlanHere};
  std::vector<Candidate> known = {{.name = kPlanHere, .endpoint = {}}};
  if (!is_here) {
    RECUA_ASSIGN_OR_RETURN(known, candidates(flags, named));
  }
  cluster::ClusterShape machines;
  for (const Candidate& each : known) machines.machines.push_back({.name = each.name});
  RECUA_ASSIGN_OR_RETURN(const cluster::SplitPlan plan,
                         cluster::parse_plan(text, where, model, machines));
  if (!is_here) return take(flags, plan, known, hyperparams, options);
  if (plan.n_ubatch != 0) options.n_ubatch = std::min(options.n_ubatch, plan.n_ubatch);
  return ok();
}

/// As `recua plan` has them by default, so that both say the same.
cluster::SearchOptions search_options(const model::SliceOptions& options) {
  cluster::SearchOptions out;
  out.workload.n_ubatch_max = options.n_ubatch;
  out.memory = {.n_cache_tokens = std::uint64_t{options.n_pages} * options.page_tokens,
                .n_ubatch = options.n_ubatch};
  out.equal_ranks = true;
  return out;
}

Result<void> take_best(ClusterFlags& flags, const LinkFlags& links, const PlannedModel& planned,
                       model::SliceOptions& options) {
  RECUA_ASSIGN_OR_RETURN(PlanMachines machines,
                         measured_machines(planned, flags, links, 0, Measure::kOnce));
  machines.shape.sums = flags.sums;
  RECUA_ASSIGN_OR_RETURN(
      cluster::PlanChoice choice,
      cluster::choose_plan(planned.shape, machines.shape, search_options(options)));
  for (const std::string& note : machines.notes) log_info("plan: {}", note);
  std::vector<Candidate> known;
  for (const net::Endpoint& worker : flags.workers) {
    known.push_back({.name = worker.to_string(), .endpoint = worker});
  }
  // The best whose workers reach each other by the addresses that were given.
  Result<void> taken = ok();
  for (cluster::RankedPlan& ranked : choice.plans) {
    ranked.plan.n_ubatch = ranked.prediction.n_ubatch;
    const Result<void> tried = take(flags, ranked.plan, known, planned.hyperparams, options);
    if (!tried.ok()) {
      if (taken.ok()) taken = tried;
      continue;
    }
    const bool is_best = &ranked == &choice.plans.front();
    log_warning("plan: {}, {} (`recua plan` shows the others)",
                describe(ranked.plan, machines.shape),
                is_best ? choice.reason : "since the best cannot be run: " + taken.error().message);
    for (const std::string& warning : choice.warnings) log_warning("plan: {}", warning);
    return ok();
  }
  return taken;
}

/// What nobody asked for: a plan that cannot be made does not keep the command from running.
Result<void> take_best_if_any(ClusterFlags& flags, const LinkFlags& links,
                              const PlannedModel& planned, model::SliceOptions& options) {
  const Result<void> taken = take_best(flags, links, planned, options);
  if (taken.ok()) return ok();
  // A worker that does not answer will not do so a second later either.
  if (taken.error().code == ErrorCode::kUnavailable || taken.error().code == ErrorCode::kTimeout) {
    return Error(taken.error());
  }
  log_warning("no plan was made ({}): all {} workers get layers by their free memory",
              taken.error().message, flags.workers.size());
  return ok();
}

}  // namespace

Result<void> take_plan(ClusterFlags& flags, const LinkFlags& links,
                       std::shared_ptr<const gguf::GgufFile> file,
                       const model::HyperParams& hyperparams, model::SliceOptions& options) {
  const bool is_own = flags.workers.size() < 2 || flags.n_ranks > 1 || flags.n_stages.has_value() ||
                      !flags.split.empty();
  if (flags.plan_file == kPlanLayers || (flags.plan_file.empty() && is_own)) return ok();
  const PlannedModel planned =
      planned_model(std::move(file), hyperparams, options.k_type, options.v_type);
  if (flags.plan_file.empty()) return take_best_if_any(flags, links, planned, options);
  return flags.plan_file == kPlanAuto ? take_best(flags, links, planned, options)
                                      : take_file(flags, planned.shape, hyperparams, options);
}

}  // namespace recua::cli
