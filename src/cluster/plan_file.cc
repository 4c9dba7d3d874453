#include "cluster/plan_file.h"

#include <array>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cluster/cluster_file.h"
#include "cluster/json_fields.h"

namespace recua::cluster {
namespace {

constexpr std::uint64_t kPlanVersion = 1;
constexpr std::uint64_t kMicroBatchTokensMax = 1 << 16;  // As -ub takes them.

/// What has to agree between a plan and a model.
std::array<std::pair<const char*, std::uint64_t>, 8> sizes_of(const ModelShape& model) {
  return {{{"n_layers", model.n_layers()},
           {"hidden_size", model.hidden_size},
           {"n_heads", model.n_heads},
           {"n_kv_heads", model.n_kv_heads},
           {"head_dim", model.head_dim},
           {"ffn_size", model.ffn_size},
           {"n_experts", model.n_experts},
           {"vocab_size", model.vocab_size}}};
}

nlohmann::ordered_json range_json(IndexRange range) {
  return nlohmann::ordered_json::array({range.begin, range.end});
}

IndexRange read_range(JsonFields& fields, const char* key, std::uint64_t most) {
  const std::vector<std::uint64_t> ends = fields.counts(key, 2, most);
  if (ends[0] > ends[1]) fields.fail(key, "ends before it begins");
  return {.begin = static_cast<std::uint32_t>(ends[0]), .end = static_cast<std::uint32_t>(ends[1])};
}

void check_model(JsonFields& fields, const ModelShape& model) {
  std::string differs;
  for (const auto& [key, expected] : sizes_of(model)) {
    const std::uint64_t found = fields.count(key, 0, std::uint64_t{1} << 32);
    if (found == expected) continue;
    differs +=
        fmt::format("{}{} {} (this one has {})", differs.empty() ? "" : ", ", key, found, expected);
  }
  static_cast<void>(fields.text("name"));
  fields.finish();
  if (!differs.empty()) fields.fail(nullptr, "is another one than this plan is for: " + differs);
}

}  // namespace

std::string plan_json(const ModelShape& model, const ClusterShape& cluster, const SplitPlan& plan) {
  nlohmann::ordered_json out;
  out["recua_plan"] = kPlanVersion;
  out["model"]["name"] = model.name.empty() ? "unnamed" : model.name;
  for (const auto& [key, value] : sizes_of(model)) out["model"][key] = value;
  if (plan.n_ubatch != 0) out["n_ubatch"] = plan.n_ubatch;
  out["stages"] = nlohmann::ordered_json::array();
  for (const StagePlan& stage : plan.stages) {
    nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
    for (const RankShare& rank : stage.ranks) {
      ranks.push_back({{"machine", cluster.machines[rank.machine].name},
                       {"heads", range_json(rank.heads)},
                       {"ffn", range_json(rank.ffn)},
                       {"vocab", range_json(rank.vocab)}});
    }
    out["stages"].push_back({{"layers", range_json(stage.layers)}, {"ranks", std::move(ranks)}});
  }
  return out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

Result<SplitPlan> parse_plan(std::string_view text, std::string_view where, const ModelShape& model,
                             const ClusterShape& cluster) {
  RECUA_ASSIGN_OR_RETURN(const nlohmann::json value, parse_json(text, where));
  JsonErrors errors = {.where = std::string(where)};
  JsonFields file(value, "", errors);
  static_cast<void>(file.count("recua_plan", kPlanVersion, kPlanVersion));
  JsonFields of_model = file.object("model");
  check_model(of_model, model);

  std::map<std::string, std::uint32_t, std::less<>> machines;
  for (std::uint32_t m = 0; m < cluster.machines.size(); ++m) {
    machines.emplace(cluster.machines[m].name, m);
  }
  SplitPlan plan;
  plan.n_ubatch = static_cast<std::uint32_t>(file.count_or("n_ubatch", 0, 1, kMicroBatchTokensMax));
  for (JsonFields& fields : file.objects("stages", model::kLayersMax)) {
    StagePlan stage;
    stage.layers = read_range(fields, "layers", model.n_layers());
    for (JsonFields& own : fields.objects("ranks", kMachinesMax)) {
      RankShare rank;
      const std::string name = own.text("machine");
      const auto at = machines.find(name);
      if (at == machines.end()) {
        std::string known;
        for (std::size_t m = 0; m < cluster.machines.size() && m < 8; ++m) {
          known += (m == 0 ? "" : ", ") + cluster.machines[m].name;
        }
        own.fail("machine", fmt::format("is \"{}\", which is not among the machines ({}{})", name,
                                        known, cluster.machines.size() > 8 ? "..." : ""));
      } else {
        rank.machine = at->second;
      }
      rank.heads = read_range(own, "heads", model.n_heads);
      rank.ffn = read_range(own, "ffn", model.ffn_size);
      rank.vocab = read_range(own, "vocab", model.vocab_size);
      own.finish();
      stage.ranks.push_back(rank);
    }
    fields.finish();
    plan.stages.push_back(std::move(stage));
  }
  file.finish();
  if (errors.first) return *errors.first;
  if (auto checked = check_plan(model, cluster, plan); !checked.ok()) {
    return std::move(checked).error().within(where);
  }
  return plan;
}

Result<std::vector<std::string>> machines_of_plan(std::string_view text, std::string_view where) {
  RECUA_ASSIGN_OR_RETURN(const nlohmann::json value, parse_json(text, where));
  JsonErrors errors = {.where = std::string(where)};
  JsonFields file(value, "", errors);
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (JsonFields& stage : file.objects("stages", model::kLayersMax)) {
    for (JsonFields& rank : stage.objects("ranks", kMachinesMax)) {
      std::string name = rank.text("machine");
      if (seen.insert(name).second) names.push_back(std::move(name));
      if (names.size() > kMachinesMax) {
        return Error{ErrorCode::kInvalidArgument,
                     fmt::format("{}: names more than {} machines", where, kMachinesMax)};
      }
    }
  }
  if (errors.first) return *errors.first;
  return names;
}

}  // namespace recua::cluster
