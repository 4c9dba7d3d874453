#pragma once
/// What each machine does when, from a schedule of stages: what a timeline shows.
///
/// A stage's work on a micro-batch is told as its computing and then its exchanges, though they
/// take turns layer by layer; the sums are the same.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cluster/machines.h"
#include "cluster/split_plan.h"
#include "cluster/step_schedule.h"

namespace recua::cluster {

enum class Activity : std::uint8_t { kCompute, kExchange, kSend };

struct TimelineEvent {
  std::uint32_t lane = 0;  // Index into Timeline::lanes.
  Activity what = Activity::kCompute;
  bool on_card = false;     // A card sends while the processor goes on.
  std::uint32_t chain = 0;  // Micro-batch of a prompt, or group of streams.
  double begin = 0.0;       // Seconds.
  double end = 0.0;
};

struct TimelineLane {
  std::string name;           // "b:7500", or "stage 3: b-0 and 7 more".
  double busy_seconds = 0.0;  // Computing.
};

struct Timeline {
  std::string title;
  std::string chain_name;  // What a chain is: "micro-batch", "stream".
  std::vector<TimelineLane> lanes;
  std::vector<TimelineEvent> events;  // In each lane and place (card or not) one after another.
  double end = 0.0;
  std::size_t n_stages_hidden = 0;  // That have no lane.
};

/// A lane per machine, or with more than n_lanes_max machines a lane per stage (its slowest rank),
/// or with more stages than that so many of them, evenly chosen. The schedule has its visits.
Timeline timeline_of(const ScheduleInput& input, const Schedule& schedule, const SplitPlan& plan,
                     const ClusterShape& cluster, std::size_t n_lanes_max = 64);

}  // namespace recua::cluster
