#include "cluster/timeline.h"

#include <algorithm>

#include <fmt/format.h>

namespace recua::cluster {
namespace {

/// A lane of a stage: which rank it shows.
struct LaneOf {
  std::uint32_t lane = 0;
  std::size_t rank = 0;
};

}  // namespace

Timeline timeline_of(const ScheduleInput& input, const Schedule& schedule, const SplitPlan& plan,
                     const ClusterShape& cluster, std::size_t n_lanes_max) {
  Timeline out;
  out.end = schedule.end;
  std::vector<std::vector<LaneOf>> lanes(plan.stages.size());
  const auto add_lane = [&](std::size_t s, std::size_t rank, std::string name) {
    lanes[s].push_back({.lane = static_cast<std::uint32_t>(out.lanes.size()), .rank = rank});
    out.lanes.push_back({.name = std::move(name), .busy_seconds = 0.0});
  };
  const auto machine_name = [&](std::size_t s, std::size_t rank) {
    return cluster.machines[plan.stages[s].ranks[rank].machine].name;
  };
  if (plan.n_machines() <= n_lanes_max) {
    for (std::size_t s = 0; s < plan.stages.size(); ++s) {
      for (std::size_t r = 0; r < plan.stages[s].ranks.size(); ++r) {
        add_lane(s, r, machine_name(s, r));
      }
    }
  } else {
    const std::size_t n_shown = std::min(plan.stages.size(), n_lanes_max);
    for (std::size_t i = 0; i < n_shown; ++i) {
      const std::size_t s = i * plan.stages.size() / n_shown;
      const auto& ranks = input.kinds.front().stages[s].ranks;
      const auto slowest =
          static_cast<std::size_t>(std::max_element(ranks.begin(), ranks.end()) - ranks.begin());
      const std::size_t n_more = plan.stages[s].ranks.size() - 1;
      add_lane(s, slowest,
               n_more == 0
                   ? fmt::format("stage {}: {}", s, machine_name(s, slowest))
                   : fmt::format("stage {}: {} and {} more", s, machine_name(s, slowest), n_more));
    }
    out.n_stages_hidden = plan.stages.size() - n_shown;
  }

  for (const StageVisit& visit : schedule.visits) {
    const TripKind& kind = input.kinds[input.chains[visit.chain][visit.trip]];
    const bool overlaps = visit.stage < kind.hops.size() && kind.hops[visit.stage].overlaps;
    for (const LaneOf& own : lanes[visit.stage]) {
      const auto add = [&](Activity what, bool on_card, double begin, double end) {
        if (!(end > begin)) return;
        out.events.push_back({.lane = own.lane,
                              .what = what,
                              .on_card = on_card,
                              .chain = visit.chain,
                              .begin = begin,
                              .end = end});
      };
      const double compute = kind.stages[visit.stage].ranks[own.rank];
      add(Activity::kCompute, false, visit.begin, visit.begin + compute);
      add(Activity::kExchange, false, visit.computed, visit.exchanged);
      add(Activity::kSend, overlaps, visit.send_begin, visit.sent);
      out.lanes[own.lane].busy_seconds += compute;
    }
  }
  return out;
}

}  // namespace recua::cluster
