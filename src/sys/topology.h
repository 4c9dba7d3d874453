#pragma once
/// Which CPUs this process may compute on, and how they share cores and memory.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace recua::sys {

/// A logical CPU.
struct Cpu {
  std::uint32_t id = 0;    // As the operating system counts them.
  std::uint32_t core = 0;  // CPUs of one physical core have the same number.
  std::uint32_t node = 0;  // CPUs beside the same memory (a NUMA node) have the same number.

  friend bool operator==(const Cpu&, const Cpu&) = default;
};

struct Topology {
  std::size_t n_cores = 1;  // Physical cores this process may use.
  std::size_t n_cpus = 1;   // Logical CPUs this process may use (affinity, cgroup cpusets).
  /// Those n_cpus, by id. Empty where nobody knows them: built without hwloc, or hwloc failed.
  std::vector<Cpu> cpus = {};
  bool whole_machine = false;  // They are all that the machine has.
};

/// Asks hwloc, or the operating system's affinity mask where hwloc fails or is not built in. Takes
/// some milliseconds: call once. HWLOC_SYNTHETIC, an environment variable of hwloc, describes
/// another machine, of which the process may then use everything.
Topology detect_topology();

/// One thread per physical core: the kernels fill a core's vector units alone.
inline std::size_t default_thread_count(const Topology& topology) { return topology.n_cores; }

/// "hwloc 2.9", or "not built in".
std::string topology_library();

}  // namespace recua::sys
