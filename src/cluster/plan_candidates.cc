#include "cluster/plan_candidates.h"

#include <algorithm>
#include <utility>

namespace recua::cluster {
namespace {

using Machines = std::vector<std::uint32_t>;

// Beyond this, the order by links is left to groups.
constexpr std::size_t kChainMax = 64;

/// 1, 2, 3 ... 16, then about a quarter more each time, and n_max itself.
std::vector<std::uint32_t> sizes_up_to(std::uint32_t n_max) {
  constexpr std::uint32_t kDense = 16;
  std::vector<std::uint32_t> out;
  std::uint32_t n = 1;
  while (n < n_max) {
    out.push_back(n);
    n += n < kDense ? 1 : std::max(n / 4, 4U) / 4 * 4;
  }
  out.push_back(n_max);
  return out;
}

std::vector<std::uint32_t> sizes(std::optional<std::uint32_t> wanted, std::uint32_t n_max) {
  return wanted ? std::vector<std::uint32_t>{*wanted} : sizes_up_to(n_max);
}

bool allowed(const Grouping& grouping, const GroupingLimits& limits) {
  if (grouping.size() > limits.n_stages_max) return false;
  if (limits.n_stages && grouping.size() != *limits.n_stages) return false;
  return std::all_of(grouping.begin(), grouping.end(), [&](const Machines& stage) {
    if (limits.equal_ranks && stage.size() != grouping.front().size()) return false;
    return stage.size() <= limits.n_ranks_max &&
           (!limits.n_ranks || stage.size() == *limits.n_ranks);
  });
}

/// Each next machine is the one with the shortest latency to the one before; of equal ones the
/// first, so the order by speed stays where links are alike.
Machines chained(const ClusterShape& cluster, std::span<const std::uint32_t> machines) {
  Machines left(machines.begin(), machines.end());
  Machines out;
  while (!left.empty()) {
    std::size_t best = 0;
    for (std::size_t i = 1; !out.empty() && i < left.size(); ++i) {
      if (cluster.link(out.back(), left[i]).latency_seconds <
          cluster.link(out.back(), left[best]).latency_seconds) {
        best = i;
      }
    }
    out.push_back(left[best]);
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(best));
  }
  return out;
}

/// Groups of links one after another, that of the fastest machine first.
Machines by_group(const ClusterShape& cluster, std::span<const std::uint32_t> machines) {
  std::vector<std::uint32_t> rank(cluster.n_groups, 0);
  std::uint32_t n = 0;
  for (const std::uint32_t machine : machines) {
    std::uint32_t& own = rank[cluster.machines[machine].group];
    if (own == 0) own = ++n;
  }
  std::vector<std::vector<std::uint32_t>> parts(n);
  for (const std::uint32_t machine : machines) {
    parts[rank[cluster.machines[machine].group] - 1].push_back(machine);
  }
  Machines out;
  for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

/// n_stages stages of the first machines in order, n_ranks or (the first n_larger) one more each.
Grouping cut(const Machines& order, std::uint32_t n_stages, std::uint32_t n_ranks,
             std::uint32_t n_larger) {
  Grouping grouping;
  std::size_t next = 0;
  for (std::uint32_t s = 0; s < n_stages; ++s) {
    const std::size_t size = n_ranks + (s < n_larger ? 1 : 0);
    grouping.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(next),
                          order.begin() + static_cast<std::ptrdiff_t>(next + size));
    next += size;
  }
  return grouping;
}

/// The machines of a group of links that are left over when it is cut into stages of n_ranks are
/// passed over, so that no stage spans two groups.
Machines whole_stages(const ClusterShape& cluster, const Machines& grouped, std::uint32_t n_ranks) {
  Machines out;
  std::size_t begin = 0;
  while (begin < grouped.size()) {
    const std::uint32_t group = cluster.machines[grouped[begin]].group;
    std::size_t end = begin;
    while (end < grouped.size() && cluster.machines[grouped[end]].group == group) ++end;
    const std::size_t n = (end - begin) / n_ranks * n_ranks;
    out.insert(out.end(), grouped.begin() + static_cast<std::ptrdiff_t>(begin),
               grouped.begin() + static_cast<std::ptrdiff_t>(begin + n));
    begin = end;
  }
  return out;
}

void exhaustive(const ClusterShape& cluster, std::span<const std::uint32_t> machines,
                const GroupingLimits& limits, const std::function<void(const Grouping&)>& sink) {
  const std::uint32_t n_subsets = 1U << machines.size();
  for (std::uint32_t subset = limits.use_all ? n_subsets - 1 : 1; subset < n_subsets; ++subset) {
    Machines members;
    for (std::size_t i = 0; i < machines.size(); ++i) {
      if ((subset >> i & 1U) != 0) members.push_back(machines[i]);
    }
    std::vector<Machines> orders = {members};
    if (Machines by_links = chained(cluster, members); by_links != members) {
      orders.push_back(std::move(by_links));
    }
    for (const Machines& order : orders) {
      // Bit i of cuts: a new stage begins after machine i.
      for (std::uint32_t cuts = 0; cuts < 1U << (members.size() - 1); ++cuts) {
        Grouping grouping(1);
        for (std::size_t i = 0; i < order.size(); ++i) {
          grouping.back().push_back(order[i]);
          if (i + 1 < order.size() && (cuts >> i & 1U) != 0) grouping.emplace_back();
        }
        if (allowed(grouping, limits)) sink(grouping);
      }
    }
  }
}

void sampled(const ClusterShape& cluster, std::span<const std::uint32_t> machines,
             const GroupingLimits& limits, const std::function<void(const Grouping&)>& sink) {
  const Machines by_speed(machines.begin(), machines.end());
  std::vector<Machines> orders = {by_speed};
  const Machines grouped = by_group(cluster, machines);
  if (grouped != by_speed) orders.push_back(grouped);
  if (machines.size() <= kChainMax) {
    Machines by_links = chained(cluster, machines);
    if (std::find(orders.begin(), orders.end(), by_links) == orders.end()) {
      orders.push_back(std::move(by_links));
    }
  }
  const auto n = static_cast<std::uint32_t>(machines.size());
  const auto try_it = [&](const Grouping& grouping) {
    if (allowed(grouping, limits)) sink(grouping);
  };
  for (const std::uint32_t n_stages : sizes(limits.n_stages, std::min(limits.n_stages_max, n))) {
    if (n_stages > n) continue;
    for (const std::uint32_t n_ranks :
         sizes(limits.n_ranks, std::min(limits.n_ranks_max, n / n_stages))) {
      const std::uint64_t n_used = std::uint64_t{n_stages} * n_ranks;
      if (n_used > n || (limits.use_all && n_used != n)) continue;
      for (const Machines& order : orders) try_it(cut(order, n_stages, n_ranks, 0));
      if (n_ranks == 1 || limits.use_all) continue;
      const Machines whole = whole_stages(cluster, grouped, n_ranks);
      if (whole.size() >= n_used && whole != grouped) try_it(cut(whole, n_stages, n_ranks, 0));
    }
    // All machines, stages differing by one.
    if (n % n_stages == 0) continue;
    for (const Machines& order : orders) {
      try_it(cut(order, n_stages, n / n_stages, n % n_stages));
    }
  }
}

}  // namespace

void for_each_grouping(const ClusterShape& cluster, std::span<const std::uint32_t> machines,
                       const GroupingLimits& limits,
                       const std::function<void(const Grouping&)>& sink) {
  if (machines.empty()) return;
  if (machines.size() <= kExhaustiveMax) {
    exhaustive(cluster, machines, limits, sink);
  } else {
    sampled(cluster, machines, limits, sink);
  }
}

}  // namespace recua::cluster
