#include "cluster/step_schedule.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "base/check.h"

namespace recua::cluster {
namespace {

/// When a stage can take or send the next.
struct StageState {
  double free_at = 0.0;
  double card_free_at = 0.0;
};

/// A trip that may start: chains that became ready earlier go first, equal ones by number.
struct Ready {
  double at = 0.0;
  std::uint32_t chain = 0;
  std::uint32_t trip = 0;
};
struct LaterFirst {
  bool operator()(const Ready& a, const Ready& b) const {
    return std::pair(a.at, a.chain) > std::pair(b.at, b.chain);
  }
};

}  // namespace

Schedule run_schedule(const ScheduleInput& input, Record record) {
  RECUA_CHECK(input.n_stages > 0);
  Schedule out;
  out.results_at.resize(input.chains.size());
  std::vector<StageState> stages(input.n_stages);
  std::priority_queue<Ready, std::vector<Ready>, LaterFirst> ready;
  for (std::uint32_t c = 0; c < input.chains.size(); ++c) {
    if (!input.chains[c].empty()) ready.push({.at = 0.0, .chain = c, .trip = 0});
  }
  while (!ready.empty()) {
    const Ready next = ready.top();
    ready.pop();
    const TripKind& kind = input.kinds[input.chains[next.chain][next.trip]];
    RECUA_CHECK(kind.stages.size() == input.n_stages && kind.hops.size() + 1 == input.n_stages);
    double arrives = next.at + kind.to_first_seconds;
    for (std::size_t s = 0; s < input.n_stages; ++s) {
      StageState& stage = stages[s];
      StageVisit visit;
      visit.chain = next.chain;
      visit.trip = next.trip;
      visit.stage = static_cast<std::uint32_t>(s);
      visit.begin = std::max(arrives, stage.free_at);
      visit.computed = visit.begin + kind.stages[s].compute;
      visit.exchanged = visit.computed + kind.stages[s].exchange;
      visit.send_begin = visit.sent = visit.exchanged;
      stage.free_at = visit.exchanged;
      if (s + 1 < input.n_stages) {
        const HopSeconds& hop = kind.hops[s];
        if (hop.overlaps) {
          visit.send_begin = std::max(visit.exchanged, stage.card_free_at);
          stage.card_free_at = visit.send_begin + hop.busy;
        } else {
          stage.free_at = visit.exchanged + hop.busy;
        }
        visit.sent = visit.send_begin + hop.busy;
        arrives = visit.sent + hop.flight;
      }
      if (record == Record::kVisits) out.visits.push_back(visit);
    }
    const double result_at = stages.back().free_at + kind.to_last_seconds;
    out.results_at[next.chain].push_back(result_at);
    out.end = std::max(out.end, result_at);
    if (next.trip + 1 < input.chains[next.chain].size()) {
      ready.push({.at = result_at + input.coordinator_seconds,
                  .chain = next.chain,
                  .trip = next.trip + 1});
    }
  }
  return out;
}

}  // namespace recua::cluster
