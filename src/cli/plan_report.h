#pragma once
/// What `recua plan` prints. Pure functions.

#include <cstdint>
#include <string>
#include <vector>

#include "cluster/plan_search.h"

namespace recua::cli {

/// One row of --scale: the best plan with the first n machines.
struct ScaleRow {
  std::uint32_t n_machines = 0;
  bool fits = false;
  cluster::RankedPlan best = {};
};

struct PlanReport {
  const cluster::ModelShape* model = nullptr;
  const cluster::ClusterShape* machines = nullptr;
  cluster::SearchOptions options = {};
  std::uint32_t n_ctx = 0;
  cluster::PlanChoice choice = {};
  std::vector<std::string> notes = {};  // What was measured, what was assumed.
};

/// For people.
std::string plan_text(const PlanReport& report);
/// One JSON object and a newline. Keys are never renamed or removed; docs/planning.md has them.
std::string plan_report_json(const PlanReport& report);

std::string scale_text(const PlanReport& report, const std::vector<ScaleRow>& rows);
std::string scale_json(const PlanReport& report, const std::vector<ScaleRow>& rows);

/// "8.50 us", "12.3 ms", "4.56 s", "3 min 20 s": three digits that count.
std::string seconds_text(double seconds);
/// "0.85", "12.3", "456": three digits that count, or all before the point.
std::string rate_text(double per_second);

}  // namespace recua::cli
