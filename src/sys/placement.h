#pragma once
/// On which CPUs the threads of a team run. Pure: applying it is ThreadPool's.
///
/// Threads are pinned only where somebody asked for it: a pinned one waits for its core while
/// another is free, so several programs on one host would hold each other up.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "sys/topology.h"

namespace recua::sys {

/// kDistribute: threads are dealt to the nodes in turns, each may run anywhere on its node.
/// kIsolate: only the node on which the process started. kNumactl: whatever numactl or taskset
/// left, each thread on one node of that as with kDistribute if there are several.
enum class NumaPolicy { kNone, kDistribute, kIsolate, kNumactl };

struct PlacementRequest {
  std::size_t n_threads = 0;  // 0: one per physical core of the CPUs that are left.
  struct Range {
    std::uint32_t first = 0;
    std::uint32_t last = 0;  // Included.
  };
  std::optional<Range> range = {};
  bool strict = false;  // A CPU for each thread, of different cores as far as they go.
  NumaPolicy numa = NumaPolicy::kNone;
  std::uint32_t here = 0;  // The CPU that asks; for kIsolate.

  [[nodiscard]] bool any() const { return range || strict || numa != NumaPolicy::kNone; }
};

struct Placement {
  std::size_t n_threads = 1;
  /// Per thread the ids of the CPUs that it may run on, ascending; empty: wherever the process may.
  std::vector<std::vector<std::uint32_t>> cpus = {};
};

/// kInvalidArgument: names the flag (--cpu-range, --cpu-strict, --numa, as recua's commands have
/// them) and which CPUs there are. kUnsupported: nobody knows the CPUs.
Result<Placement> place_threads(const Topology& topology, const PlacementRequest& request);

/// "0-3,8": how people write sets of CPUs.
std::string cpu_list(std::span<const std::uint32_t> ids);

/// The calling thread runs on these CPUs from now on, and so do threads that it starts. False: the
/// system refuses.
bool bind_this_thread(std::span<const std::uint32_t> ids);

/// The CPU that this thread is on.
std::uint32_t current_cpu();

}  // namespace recua::sys
