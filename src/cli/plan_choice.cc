#include "cli/plan_choice.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "cli/plan_inputs.h"
#include "cluster/json_fields.h"
#include "cluster/model_shape.h"
#include "cluster/plan_file.h"
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

}  // namespace

Result<void> take_plan(ClusterFlags& flags, const gguf::GgufFile& file,
                       const model::HyperParams& hyperparams, model::SliceOptions& options) {
  const std::string& where = flags.plan_file;
  if (where.empty()) return ok();
  RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(where, cluster::kJsonBytesMax));
  RECUA_ASSIGN_OR_RETURN(const std::vector<std::string> named,
                         cluster::machines_of_plan(text, where));
  const bool is_here = flags.workers.empty() && named == std::vector<std::string>{kPlanHere};
  std::vector<Candidate> known;
  if (is_here) {
    known.push_back({.name = kPlanHere, .endpoint = {}});
  } else {
    RECUA_ASSIGN_OR_RETURN(known, candidates(flags, named));
  }
  cluster::ClusterShape machines;
  for (const Candidate& each : known) machines.machines.push_back({.name = each.name});
  const cluster::ModelShape model =
      cluster::model_shape(file, hyperparams, options.k_type, options.v_type);
  RECUA_ASSIGN_OR_RETURN(const cluster::SplitPlan plan,
                         cluster::parse_plan(text, where, model, machines));
  auto planned = cluster::slices_of(plan, hyperparams);
  if (!planned.ok()) return std::move(planned).error().within(where);
  if (plan.n_ubatch != 0) options.n_ubatch = std::min(options.n_ubatch, plan.n_ubatch);
  flags.workers.clear();
  flags.slices.clear();
  if (is_here) return ok();
  for (const std::uint32_t machine : planned->machines) {
    flags.workers.push_back(known[machine].endpoint);
  }
  flags.slices = std::move(planned->slices);
  flags.n_ranks = planned->n_ranks;
  return check_worker_list(where, flags.workers);
}

}  // namespace recua::cli
