#include "sys/placement.h"

#include <algorithm>
#include <sched.h>

#include <fmt/format.h>

namespace recua::sys {
namespace {

std::vector<std::uint32_t> ids_of(std::span<const Cpu> cpus) {
  std::vector<std::uint32_t> out;
  for (const Cpu& cpu : cpus) out.push_back(cpu.id);
  std::sort(out.begin(), out.end());
  return out;
}

std::size_t n_cores_of(std::span<const Cpu> cpus) {
  std::vector<std::uint32_t> cores;
  for (const Cpu& cpu : cpus) cores.push_back(cpu.core);
  std::sort(cores.begin(), cores.end());
  return static_cast<std::size_t>(std::unique(cores.begin(), cores.end()) - cores.begin());
}

// One CPU of each core before the second of any, nodes in turns or one after the other.
std::vector<Cpu> in_order(std::span<const Cpu> cpus, bool nodes_in_turns) {
  struct Place {
    std::size_t sibling = 0;  // CPUs of its core before it.
    std::size_t in_node = 0;  // Those of its node with the same number of siblings before it.
    Cpu cpu = {};
  };
  std::vector<Place> places;
  for (const Cpu& cpu : cpus) {
    Place place{.cpu = cpu};
    for (const Place& other : places) place.sibling += other.cpu.core == cpu.core ? 1U : 0U;
    for (const Place& other : places) {
      place.in_node += other.cpu.node == cpu.node && other.sibling == place.sibling ? 1U : 0U;
    }
    places.push_back(place);
  }
  std::sort(places.begin(), places.end(), [nodes_in_turns](const Place& a, const Place& b) {
    if (a.sibling != b.sibling) return a.sibling < b.sibling;
    if (nodes_in_turns && a.in_node != b.in_node) return a.in_node < b.in_node;
    if (a.cpu.node != b.cpu.node) return a.cpu.node < b.cpu.node;
    return a.cpu.id < b.cpu.id;
  });
  std::vector<Cpu> out;
  for (const Place& place : places) out.push_back(place.cpu);
  return out;
}

Result<std::vector<Cpu>> usable_cpus(const Topology& topology, const PlacementRequest& request) {
  std::vector<Cpu> out = topology.cpus;
  if (request.range) {
    const auto [first, last] = *request.range;
    std::erase_if(out, [&](const Cpu& cpu) { return cpu.id < first || cpu.id > last; });
    if (first > last || out.size() != std::size_t{last} - first + 1) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("--cpu-range is {}-{}: this process may use the CPUs {}, so give a "
                               "first and a last one of them with none missing in between",
                               first, last, cpu_list(ids_of(topology.cpus)))};
    }
  }
  if (request.numa != NumaPolicy::kIsolate) return out;
  const auto here = std::find_if(topology.cpus.begin(), topology.cpus.end(),
                                 [&](const Cpu& cpu) { return cpu.id == request.here; });
  const std::uint32_t node = here != topology.cpus.end() ? here->node : out.front().node;
  std::erase_if(out, [&](const Cpu& cpu) { return cpu.node != node; });
  if (out.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--numa isolate: the process started on node {}, which has none of "
                             "the CPUs {}-{} of --cpu-range; leave one of the two flags away",
                             node, request.range->first, request.range->last)};
  }
  return out;
}

}  // namespace

Result<Placement> place_threads(const Topology& topology, const PlacementRequest& request) {
  Placement out;
  out.n_threads = request.n_threads != 0 ? request.n_threads : default_thread_count(topology);
  if (!request.any()) return out;
  if (topology.cpus.empty()) {
    return Error{
        ErrorCode::kUnsupported,
        fmt::format("--cpu-range, --cpu-strict and --numa need to know the machine's CPUs, "
                    "which hwloc tells ({} here): leave them away, or start under taskset "
                    "or numactl",
                    topology_library())};
  }
  RECUA_ASSIGN_OR_RETURN(const std::vector<Cpu> usable, usable_cpus(topology, request));
  if (request.n_threads == 0) out.n_threads = n_cores_of(usable);
  if (request.strict && out.n_threads > usable.size()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--cpu-strict 1 needs a CPU for each of {} threads, and there are {} "
                             "({}): take fewer threads (-t) or --cpu-strict 0",
                             out.n_threads, usable.size(), cpu_list(ids_of(usable)))};
  }
  const bool by_node =
      request.numa == NumaPolicy::kDistribute || request.numa == NumaPolicy::kNumactl;
  const std::vector<Cpu> order = in_order(usable, by_node);
  for (std::size_t t = 0; t < out.n_threads; ++t) {
    const Cpu& own = order[t % order.size()];
    if (request.strict) {
      out.cpus.push_back({own.id});
    } else if (by_node) {
      std::vector<Cpu> node = usable;
      std::erase_if(node, [&](const Cpu& cpu) { return cpu.node != own.node; });
      out.cpus.push_back(ids_of(node));
    } else {
      out.cpus.push_back(ids_of(usable));
    }
  }
  return out;
}

std::string cpu_list(std::span<const std::uint32_t> ids) {
  std::string out;
  for (std::size_t i = 0; i < ids.size();) {
    std::size_t end = i + 1;
    while (end < ids.size() && ids[end] == ids[end - 1] + 1) ++end;
    out += out.empty() ? "" : ",";
    out += end - i == 1 ? fmt::format("{}", ids[i]) : fmt::format("{}-{}", ids[i], ids[end - 1]);
    i = end;
  }
  return out;
}

bool bind_this_thread(std::span<const std::uint32_t> ids) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const std::uint32_t id : ids) {
    if (id >= CPU_SETSIZE) return false;
    CPU_SET(id, &set);
  }
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

std::uint32_t current_cpu() {
  const int cpu = sched_getcpu();
  return cpu < 0 ? 0 : static_cast<std::uint32_t>(cpu);
}

}  // namespace recua::sys
