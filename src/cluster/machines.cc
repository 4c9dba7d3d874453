#include "cluster/machines.h"

#include <algorithm>

namespace recua::cluster {

double typical_message_seconds(LinkTransport transport) {
  switch (transport) {
    case LinkTransport::kSharedMemory:
      return 0.1e-6;
    case LinkTransport::kRdma:
      return 0.3e-6;
    case LinkTransport::kTcp:
      break;
  }
  return 3e-6;
}

std::optional<LinkSpec> choose_link(std::span<const LinkSpec> links,
                                    std::span<const LinkTransport> allowed) {
  for (const LinkTransport transport : kAllLinkTransports) {
    if (std::find(allowed.begin(), allowed.end(), transport) == allowed.end()) continue;
    for (const LinkSpec& link : links) {
      if (link.transport == transport) return link;
    }
  }
  return std::nullopt;
}

ClusterShape cluster_of(std::vector<Machine> machines, const LinkSpec& link) {
  ClusterShape cluster;
  cluster.machines = std::move(machines);
  cluster.n_groups = static_cast<std::uint32_t>(cluster.machines.size());
  for (std::uint32_t i = 0; i < cluster.n_groups; ++i) cluster.machines[i].group = i;
  cluster.links.assign(std::size_t{cluster.n_groups} * cluster.n_groups, link);
  cluster.coordinator_links.assign(cluster.n_groups, link);
  return cluster;
}

}  // namespace recua::cluster
