#pragma once
/// The schedule of micro-batches over the stages of a plan: who does what when. The planner's
/// predictions and the simulator's timelines are read from the same schedule.
///
/// A trip is one micro-batch on its way through all stages. Trips form chains: the next of a chain
/// starts when the result of the one before is back at the coordinator. A prompt is many chains of
/// one trip each, all ready at once; each group of streams that decode together is a chain of many
/// trips. Every stage serves one trip at a time in the order of arrival; since all trips take the
/// same way, they never overtake, and the order of the first stage is that of all. So the events
/// are computed trip by trip, without a queue.
///
/// Not modelled: a full ring that stops its sender, and jitter.

#include <cstdint>
#include <span>
#include <vector>

#include "cluster/step_model.h"

namespace recua::cluster {

/// A kind of trip: what it costs at each stage.
struct TripKind {
  std::vector<StageSeconds> stages = {};
  std::vector<HopSeconds> hops = {};  // [n_stages - 1], from stage i to i + 1.
  double to_first_seconds = 0.0;      // From the coordinator to the first stage,
  double to_last_seconds = 0.0;       // and from the last one back.
};

struct ScheduleInput {
  std::size_t n_stages = 0;
  std::vector<TripKind> kinds = {};
  std::vector<std::vector<std::uint32_t>> chains = {};  // Kinds of the trips, one after another.
  double coordinator_seconds = 0.0;                     // Between a result and the next trip.
};

/// A trip's stay at a stage, in seconds from the start.
struct StageVisit {
  std::uint32_t chain = 0;
  std::uint32_t trip = 0;  // Index in its chain.
  std::uint32_t stage = 0;
  double begin = 0.0;
  double computed = 0.0;    // The slowest rank is done: the exchange begins.
  double exchanged = 0.0;   // The rows are complete: sending begins, at send_begin.
  double send_begin = 0.0;  // Later than exchanged only when the card is still sending.
  double sent = 0.0;        // The sender has nothing left to do with it.
};

struct Schedule {
  std::vector<StageVisit> visits = {};               // In order of begin at each stage.
  std::vector<std::vector<double>> results_at = {};  // [chain][trip], at the coordinator.
  double end = 0.0;                                  // Of the last result.
};

enum class Record : bool { kResultsOnly, kVisits };

/// Kinds have n_stages entries each. O(trips * n_stages).
Schedule run_schedule(const ScheduleInput& input, Record record);

}  // namespace recua::cluster
