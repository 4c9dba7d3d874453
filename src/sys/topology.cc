#include "sys/topology.h"

#include <algorithm>
#include <sched.h>

#ifdef RECUA_HAS_HWLOC
#include <hwloc.h>
#endif

namespace recua::sys {
namespace {

std::size_t cpus_by_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max<std::size_t>(1, static_cast<std::size_t>(CPU_COUNT(&set)));
}

#ifdef RECUA_HAS_HWLOC

// The CPUs of a loaded topology that are in `allowed`, by id.
std::vector<Cpu> cpus_in(hwloc_topology_t topology, hwloc_const_cpuset_t allowed) {
  std::vector<Cpu> out;
  for (hwloc_obj_t pu = nullptr;
       (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != nullptr;) {
    if (hwloc_bitmap_isset(allowed, pu->os_index) == 0) continue;
    Cpu cpu{.id = pu->os_index, .core = pu->logical_index, .node = 0};
    const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
    if (core != nullptr) cpu.core = core->logical_index;
    const int node = hwloc_bitmap_first(pu->nodeset);
    if (node >= 0) cpu.node = static_cast<std::uint32_t>(node);
    out.push_back(cpu);
  }
  std::sort(out.begin(), out.end(), [](const Cpu& a, const Cpu& b) { return a.id < b.id; });
  return out;
}

// Fills out as far as hwloc knows.
void ask_hwloc(hwloc_topology_t topology, Topology& out) {
  if (hwloc_topology_load(topology) != 0) return;
  hwloc_const_cpuset_t all = hwloc_topology_get_complete_cpuset(topology);
  hwloc_cpuset_t allowed = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(topology));
  if (allowed == nullptr) return;
  if (hwloc_topology_is_thissystem(topology) != 0 &&
      hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_PROCESS) != 0) {
    hwloc_bitmap_free(allowed);
    return;
  }
  out.cpus = cpus_in(topology, allowed);
  out.whole_machine = hwloc_bitmap_isincluded(all, allowed) != 0;
  hwloc_bitmap_free(allowed);
  if (out.cpus.empty()) return;
  std::vector<std::uint32_t> cores;
  for (const Cpu& cpu : out.cpus) cores.push_back(cpu.core);
  std::sort(cores.begin(), cores.end());
  cores.erase(std::unique(cores.begin(), cores.end()), cores.end());
  out.n_cpus = out.cpus.size();
  out.n_cores = cores.size();
}

#endif

}  // namespace

Topology detect_topology() {
  Topology out;
  out.n_cpus = cpus_by_affinity();
  out.n_cores = out.n_cpus;
#ifdef RECUA_HAS_HWLOC
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return out;
  ask_hwloc(topology, out);
  hwloc_topology_destroy(topology);
#endif
  return out;
}

std::string topology_library() {
#ifdef RECUA_HAS_HWLOC
  const unsigned version = hwloc_get_api_version();
  return "hwloc " + std::to_string(version >> 16U) + "." + std::to_string((version >> 8U) & 0xFFU);
#else
  return "not built in";
#endif
}

}  // namespace recua::sys
