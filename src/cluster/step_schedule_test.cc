#include "cluster/step_schedule.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::cluster {
namespace {

TripKind kind_of(std::vector<double> compute, double busy, double flight, bool overlaps) {
  TripKind kind;
  for (const double seconds : compute) {
    kind.stages.push_back({.compute = seconds, .exchange = 0.0, .ranks = {seconds}});
  }
  kind.hops.assign(compute.size() - 1, {.busy = busy, .flight = flight, .overlaps = overlaps});
  return kind;
}

TEST(Schedule, FillsAndDrainsAPipeline) {
  // Three micro-batches over two stages of one second: 1 to fill, 3 to work.
  ScheduleInput input = {.n_stages = 2, .kinds = {kind_of({1, 1}, 0, 0, true)}, .chains = {}};
  input.chains = {{0}, {0}, {0}};
  EXPECT_DOUBLE_EQ(run_schedule(input, Record::kResultsOnly).end, 4.0);
}

TEST(Schedule, WaitsForResultsWithinAChain) {
  ScheduleInput input = {.n_stages = 2, .kinds = {kind_of({1, 1}, 0, 0.5, true)}, .chains = {}};
  input.kinds[0].to_first_seconds = 0.25;
  input.kinds[0].to_last_seconds = 0.25;
  input.coordinator_seconds = 1.0;
  input.chains = {{0, 0}};
  const Schedule schedule = run_schedule(input, Record::kResultsOnly);
  EXPECT_DOUBLE_EQ(schedule.results_at[0][0], 3.0);
  EXPECT_DOUBLE_EQ(schedule.results_at[0][1], 7.0);
}

TEST(Schedule, LetsTwoStreamsWorkOnDifferentStages) {
  ScheduleInput input = {.n_stages = 2, .kinds = {kind_of({1, 1}, 0, 0, true)}, .chains = {}};
  input.chains = {std::vector<std::uint32_t>(10, 0), std::vector<std::uint32_t>(10, 0)};
  // Both stages are busy all the time but for the first and the last second.
  EXPECT_DOUBLE_EQ(run_schedule(input, Record::kResultsOnly).end, 21.0);
}

TEST(Schedule, LetsACardSendWhileTheProcessorComputes) {
  ScheduleInput input = {.n_stages = 2, .kinds = {kind_of({1, 1}, 1, 0, true)}, .chains = {}};
  input.chains = {{0}, {0}, {0}};
  EXPECT_DOUBLE_EQ(run_schedule(input, Record::kResultsOnly).end, 5.0);
  input.kinds[0] = kind_of({1, 1}, 1, 0, false);
  EXPECT_DOUBLE_EQ(run_schedule(input, Record::kResultsOnly).end, 7.0);
}

ScheduleInput random_input(std::uint64_t seed) {
  Rng rng(seed);
  ScheduleInput input;
  input.n_stages = 1 + rng.below(6);
  input.coordinator_seconds = rng.unit();
  const bool overlaps = rng.below(2) == 0;
  for (int k = 0; k < 3; ++k) {
    std::vector<double> compute;
    for (std::size_t s = 0; s < input.n_stages; ++s) compute.push_back(rng.unit());
    TripKind kind = kind_of(compute, rng.unit(), rng.unit(), overlaps);
    for (StageSeconds& stage : kind.stages) stage.exchange = rng.below(2) == 0 ? 0 : rng.unit();
    kind.to_first_seconds = 0.1;
    kind.to_last_seconds = rng.unit();
    input.kinds.push_back(kind);
  }
  for (std::uint64_t c = 0; c < 1 + rng.below(5); ++c) {
    std::vector<std::uint32_t> chain;
    for (std::uint64_t t = 0; t < 1 + rng.below(5); ++t) {
      chain.push_back(static_cast<std::uint32_t>(rng.below(3)));
    }
    input.chains.push_back(chain);
  }
  return input;
}

// The processor of a stage does one thing at a time, and its card too; a trip is at one stage at a
// time; causes come before effects.
TEST(Schedule, NeverDoesTwoThingsAtOnce) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    const ScheduleInput input = random_input(seed);
    const Schedule schedule = run_schedule(input, Record::kVisits);
    std::vector<double> processor(input.n_stages, 0.0);
    std::vector<double> card(input.n_stages, 0.0);
    std::size_t n_trips = 0;
    for (const auto& chain : input.chains) n_trips += chain.size();
    ASSERT_EQ(schedule.visits.size(), n_trips * input.n_stages);
    double before = 0.0;  // When the trip left the stage before.
    for (const StageVisit& visit : schedule.visits) {
      const TripKind& kind = input.kinds[input.chains[visit.chain][visit.trip]];
      const bool overlaps = visit.stage < kind.hops.size() && kind.hops[visit.stage].overlaps;
      EXPECT_GE(visit.begin, processor[visit.stage]);
      EXPECT_NEAR(visit.computed - visit.begin, kind.stages[visit.stage].compute, 1e-9);
      EXPECT_GE(visit.exchanged, visit.computed);
      EXPECT_GE(visit.send_begin, visit.exchanged);
      EXPECT_GE(visit.sent, visit.send_begin);
      if (visit.sent > visit.send_begin) {
        EXPECT_GE(visit.send_begin, card[visit.stage]);
      }
      if (overlaps) {
        card[visit.stage] = visit.sent;
        processor[visit.stage] = visit.exchanged;
      } else {
        EXPECT_EQ(visit.send_begin, visit.exchanged);
        processor[visit.stage] = visit.sent;
      }
      if (visit.stage > 0) {
        EXPECT_GE(visit.begin, before);
      }
      before = visit.sent;
      EXPECT_LE(visit.sent, schedule.end);
    }
    for (const auto& results : schedule.results_at) {
      for (std::size_t i = 1; i < results.size(); ++i) EXPECT_GT(results[i], results[i - 1]);
    }
  }
}

TEST(Schedule, IsTheSameEachTime) {
  const ScheduleInput input = random_input(7);
  EXPECT_EQ(run_schedule(input, Record::kVisits).results_at,
            run_schedule(input, Record::kResultsOnly).results_at);
}

}  // namespace
}  // namespace recua::cluster
