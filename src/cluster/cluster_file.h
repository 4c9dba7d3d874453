#pragma once
/// cluster.json: machines that somebody describes, to be planned for without having them. The
/// format with an example: docs/planning.md, "Describing machines".

#include <span>
#include <string_view>

#include "base/result.h"
#include "cluster/machines.h"

namespace recua::cluster {

inline constexpr std::size_t kMachinesMax = 10'000;
inline constexpr std::size_t kGroupsDescribedMax = 256;

/// where: the file's name, for messages. allowed: transports that links may use.
/// kInvalidArgument: names the field and what would be right.
Result<ClusterShape> parse_cluster(std::string_view text, std::string_view where,
                                   std::span<const LinkTransport> allowed = kAllLinkTransports);

/// The first n machines of a cluster: n of the first group, then of the second, and so on.
ClusterShape first_machines(const ClusterShape& cluster, std::size_t n);

}  // namespace recua::cluster
