#include "cli/plan_report.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/text_table.h"
#include "cli/units.h"
#include "cluster/plan.h"

namespace recua::cli {
namespace {

using cluster::ClusterShape;
using cluster::IndexRange;
using cluster::Machine;
using cluster::ModelShape;
using cluster::Prediction;
using cluster::RankedPlan;
using cluster::SearchOptions;
using cluster::StagePlan;
using nlohmann::ordered_json;

constexpr std::size_t kMachineRowsMax = 12;

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string model_line(const PlanReport& report) {
  const ModelShape& model = *report.model;
  std::string experts;
  if (model.n_experts > 0) {
    experts = fmt::format(", {} of {} experts", model.n_experts_used, model.n_experts);
  }
  return fmt::format("{}: {} layers, {} weights{}, {}; cache of {} tokens {}\n",
                     file_name(model.name), model.n_layers(), human_count(model.n_weights()),
                     experts, cluster::format_bytes(model.bytes()),
                     report.options.memory.n_cache_tokens,
                     cluster::format_bytes(report.options.memory.n_cache_tokens *
                                           model.kv_token_bytes * model.n_layers()));
}

std::string giga(double per_second) { return rate_text(per_second / 1e9); }

/// Machines with equal numbers in one row.
std::string machines_text(const ClusterShape& machines) {
  std::vector<std::vector<std::string>> rows = {
      {"machine", ">memory", ">GB/s", ">GMAC/s", ">threads"}};
  const auto alike = [](const Machine& a, const Machine& b) {
    return a.memory_bytes == b.memory_bytes && a.speed == b.speed && a.n_threads == b.n_threads;
  };
  std::size_t begin = 0;
  while (begin < machines.machines.size() && rows.size() <= kMachineRowsMax) {
    const Machine& first = machines.machines[begin];
    std::size_t end = begin + 1;
    while (end < machines.machines.size() && alike(first, machines.machines[end])) ++end;
    const double macs = first.speed.by_type.empty() ? first.speed.macs_per_second
                                                    : first.speed.by_type.front().macs_per_second;
    std::string name = first.name;
    if (end - begin == 2) {
      name += ", " + machines.machines[begin + 1].name;
    } else if (end - begin > 2) {
      name += fmt::format(" to {} ({})", machines.machines[end - 1].name, end - begin);
    }
    rows.push_back({name, cluster::format_bytes(first.memory_bytes),
                    giga(first.speed.bytes_per_second), giga(macs),
                    first.n_threads == 0 ? "" : fmt::format("{}", first.n_threads)});
    begin = end;
  }
  if (begin < machines.machines.size()) {
    rows.push_back({fmt::format("and {} more", machines.machines.size() - begin)});
  }
  return text_table(std::move(rows));
}

/// The machine that is closest to its limit.
struct Fullest {
  cluster::MemoryNeed need = {};
  std::uint64_t has = 0;
};
Fullest fullest(const PlanReport& report, const cluster::SplitPlan& plan) {
  Fullest out;
  double most = -1.0;
  for (const StagePlan& stage : plan.stages) {
    for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
      const std::uint64_t has = report.machines->machines[stage.ranks[r].machine].memory_bytes;
      const auto need = cluster::memory_need(*report.model, stage, r, report.options.memory);
      const double share = static_cast<double>(need.total()) / static_cast<double>(has);
      if (share <= most) continue;
      most = share;
      out = {.need = need, .has = has};
    }
  }
  return out;
}

std::string plans_text(const PlanReport& report) {
  const bool streams = report.options.workload.n_streams > 1;
  std::vector<std::string> head = {"", "plan", ">machines", ">first token", ">tokens/s"};
  if (streams) head.push_back(fmt::format(">tokens/s x{}", report.options.workload.n_streams));
  head.insert(head.end(), {">answer", "  fullest machine"});
  std::vector<std::vector<std::string>> rows = {head};
  for (const RankedPlan& plan : report.choice.plans) {
    const Prediction& p = plan.prediction;
    const Fullest full = fullest(report, plan.plan);
    std::vector<std::string> row = {&plan == &report.choice.plans.front() ? "*" : " ",
                                    kind_of(plan.plan), fmt::format("{}", plan.plan.n_machines()),
                                    seconds_text(p.first_token_seconds),
                                    rate_text(p.tokens_per_second)};
    if (streams) row.push_back(rate_text(p.tokens_per_second_streams));
    row.push_back(seconds_text(p.answer_seconds));
    row.push_back(fmt::format("  {} of {}", cluster::format_bytes(full.need.total()),
                              cluster::format_bytes(full.has)));
    rows.push_back(std::move(row));
  }
  return text_table(std::move(rows));
}

std::string workload_text(const SearchOptions& options) {
  const cluster::Workload& w = options.workload;
  return fmt::format("a prompt of {} tokens, then {} tokens{}", w.n_prompt, w.n_generate,
                     w.n_streams == 1 ? "" : fmt::format(" for each of {} streams", w.n_streams));
}

ordered_json range_json(IndexRange range) { return ordered_json::array({range.begin, range.end}); }

ordered_json prediction_json(const Prediction& p) {
  return {{"first_token_seconds", p.first_token_seconds},
          {"tokens_per_second", p.tokens_per_second},
          {"tokens_per_second_streams", p.tokens_per_second_streams},
          {"answer_seconds", p.answer_seconds},
          {"n_ubatch", p.n_ubatch},
          {"n_in_flight", p.n_in_flight},
          {"decode_compute_seconds", p.decode_compute_seconds},
          {"decode_exchange_seconds", p.decode_exchange_seconds},
          {"decode_link_seconds", p.decode_link_seconds}};
}

ordered_json plan_entry(const PlanReport& report, const RankedPlan& plan) {
  ordered_json out;
  out["kind"] = kind_of(plan.plan);
  out["n_machines"] = plan.plan.n_machines();
  out["prediction"] = prediction_json(plan.prediction);
  out["stages"] = ordered_json::array();
  for (const StagePlan& stage : plan.plan.stages) {
    ordered_json ranks = ordered_json::array();
    for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
      const cluster::RankShare& rank = stage.ranks[r];
      const auto need = cluster::memory_need(*report.model, stage, r, report.options.memory);
      ranks.push_back({{"machine", report.machines->machines[rank.machine].name},
                       {"heads", range_json(rank.heads)},
                       {"ffn", range_json(rank.ffn)},
                       {"vocab", range_json(rank.vocab)},
                       {"weights_bytes", need.weights},
                       {"cache_bytes", need.cache},
                       {"working_bytes", need.working}});
    }
    out["stages"].push_back({{"layers", range_json(stage.layers)}, {"ranks", std::move(ranks)}});
  }
  return out;
}

ordered_json head_json(const PlanReport& report) {
  const ModelShape& model = *report.model;
  const cluster::Workload& w = report.options.workload;
  ordered_json out;
  out["model"] = {{"name", file_name(model.name)},
                  {"n_layers", model.n_layers()},
                  {"n_weights", model.n_weights()},
                  {"n_bytes", model.bytes()},
                  {"cache_bytes",
                   report.options.memory.n_cache_tokens * model.kv_token_bytes * model.n_layers()}};
  out["workload"] = {{"n_prompt", w.n_prompt},
                     {"n_generate", w.n_generate},
                     {"n_streams", w.n_streams},
                     {"n_ctx", report.n_ctx}};
  out["n_machines"] = report.machines->machines.size();
  return out;
}

std::string dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string seconds_text(double seconds) {
  if (seconds >= 119.5) {
    const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
    if (whole >= 7200) return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
    return fmt::format("{} min {} s", whole / 60, whole % 60);
  }
  if (seconds >= 0.9995) return rate_text(seconds) + " s";
  if (seconds >= 0.9995e-3) return rate_text(seconds * 1e3) + " ms";
  return rate_text(seconds * 1e6) + " us";
}

std::string rate_text(double per_second) {
  if (per_second < 9.995) return fmt::format("{:.2f}", per_second);
  if (per_second < 99.95) return fmt::format("{:.1f}", per_second);
  return fmt::format("{:.0f}", per_second);
}

std::string plan_text(const PlanReport& report) {
  const RankedPlan& best = report.choice.plans.front();
  std::string out = model_line(report) + "\n";
  out += machines_text(*report.machines) + "\n";
  out += fmt::format("predicted for {}:\n", workload_text(report.options));
  out += plans_text(report) + "\n";
  out += fmt::format("best: {}", describe(best.plan, *report.machines));
  if (best.plan.stages.size() > 1) {
    out += fmt::format("; micro-batches of {}", best.prediction.n_ubatch);
  }
  out += fmt::format("\nwhy:  {}\n", report.choice.reason);
  for (const std::string& note : report.notes) out += fmt::format("note: {}\n", note);
  for (const std::string& warning : report.choice.warnings) {
    out += fmt::format("warning: {}\n", warning);
  }
  return out;
}

std::string plan_report_json(const PlanReport& report) {
  ordered_json out = head_json(report);
  out["plans"] = ordered_json::array();
  for (const RankedPlan& plan : report.choice.plans) {
    out["plans"].push_back(plan_entry(report, plan));
  }
  out["n_considered"] = report.choice.n_considered;
  out["reason"] = report.choice.reason;
  out["warnings"] = report.choice.warnings;
  out["notes"] = report.notes;
  return dump(out);
}

std::string scale_text(const PlanReport& report, const std::vector<ScaleRow>& rows) {
  const bool streams = report.options.workload.n_streams > 1;
  std::vector<std::string> head = {">machines", "best plan", ">uses", ">first token", ">tokens/s"};
  if (streams) head.push_back(fmt::format(">tokens/s x{}", report.options.workload.n_streams));
  head.push_back(">answer");
  std::vector<std::vector<std::string>> table = {head};
  for (const ScaleRow& row : rows) {
    std::vector<std::string> cells = {fmt::format("{}", row.n_machines)};
    if (row.fits) {
      const Prediction& p = row.best.prediction;
      cells.insert(cells.end(),
                   {kind_of(row.best.plan), fmt::format("{}", row.best.plan.n_machines()),
                    seconds_text(p.first_token_seconds), rate_text(p.tokens_per_second)});
      if (streams) cells.push_back(rate_text(p.tokens_per_second_streams));
      cells.push_back(seconds_text(p.answer_seconds));
    } else {
      cells.emplace_back("does not fit");
    }
    table.push_back(std::move(cells));
  }
  return model_line(report) + fmt::format("predicted for {}:\n\n", workload_text(report.options)) +
         text_table(std::move(table));
}

std::string scale_json(const PlanReport& report, const std::vector<ScaleRow>& rows) {
  ordered_json out = head_json(report);
  out["scale"] = ordered_json::array();
  for (const ScaleRow& row : rows) {
    ordered_json entry = {{"n_machines", row.n_machines}, {"fits", row.fits}};
    if (row.fits) {
      entry["kind"] = kind_of(row.best.plan);
      entry["n_machines_used"] = row.best.plan.n_machines();
      entry["n_stages"] = row.best.plan.stages.size();
      entry["n_ranks"] = row.best.plan.n_ranks_max();
      entry["prediction"] = prediction_json(row.best.prediction);
    }
    out["scale"].push_back(std::move(entry));
  }
  out["notes"] = report.notes;
  return dump(out);
}

}  // namespace recua::cli
