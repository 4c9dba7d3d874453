#pragma once
/// How many threads this machine should compute with.

#include <cstddef>

namespace recua::sys {

struct Topology {
  std::size_t n_cores = 1;  // Physical cores this process may use.
  std::size_t n_cpus = 1;   // Logical CPUs this process may use (affinity, cgroup cpusets).
};

/// Asks hwloc, or the operating system's affinity mask where hwloc fails. Takes some milliseconds:
/// call once.
Topology detect_topology();

/// One thread per physical core: the kernels fill a core's vector units alone.
inline std::size_t default_thread_count(const Topology& topology) { return topology.n_cores; }

}  // namespace recua::sys
