#include "sys/topology.h"

#include <algorithm>
#include <sched.h>

#include <hwloc.h>

namespace recua::sys {
namespace {

std::size_t cpus_by_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max<std::size_t>(1, static_cast<std::size_t>(CPU_COUNT(&set)));
}

// Cores with at least one CPU that this process may be bound to.
std::size_t cores_in(hwloc_topology_t topology, hwloc_const_cpuset_t allowed) {
  std::size_t n = 0;
  for (hwloc_obj_t core = nullptr;
       (core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core)) != nullptr;) {
    if (hwloc_bitmap_intersects(core->cpuset, allowed) != 0) ++n;
  }
  return n;
}

}  // namespace

Topology detect_topology() {
  Topology out;
  out.n_cpus = cpus_by_affinity();
  out.n_cores = out.n_cpus;
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return out;
  if (hwloc_topology_load(topology) == 0) {
    hwloc_cpuset_t allowed = hwloc_bitmap_alloc();
    if (allowed != nullptr && hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_PROCESS) == 0) {
      const std::size_t n = cores_in(topology, allowed);
      if (n > 0) out.n_cores = std::min(n, out.n_cpus);
    }
    hwloc_bitmap_free(allowed);
  }
  hwloc_topology_destroy(topology);
  return out;
}

}  // namespace recua::sys
