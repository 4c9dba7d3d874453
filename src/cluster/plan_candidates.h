#pragma once
/// Which machines may work together, and how: the groupings that the search tries.
///
/// Up to kExhaustiveMax machines: every subset, cut in every way into neighbours, in two orders
/// (fastest first, and each next to the one with the best link). More: the fastest first, and
/// fastest first within each group of links, in stages of equal size or differing by one; sizes are
/// all small numbers and then ever sparser ones. So a thousand machines cost a few thousand tries.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cluster/machines.h"
#include "cluster/plan_layout.h"

namespace recua::cluster {

inline constexpr std::size_t kExhaustiveMax = 7;

struct GroupingLimits {
  std::uint32_t n_stages_max = 1;              // The model's layers.
  std::uint32_t n_ranks_max = 1;               // The model's query heads.
  std::optional<std::uint32_t> n_stages = {};  // Exactly so many.
  std::optional<std::uint32_t> n_ranks = {};   // Exactly so many in each stage.
  bool use_all = false;                        // No machine left out.
  bool equal_ranks = false;                    // The same number in every stage.
};

/// Calls sink for each grouping of machines, which are given fastest first. The same inputs give
/// the same calls in the same order.
void for_each_grouping(const ClusterShape& cluster, std::span<const std::uint32_t> machines,
                       const GroupingLimits& limits,
                       const std::function<void(const Grouping&)>& sink);

}  // namespace recua::cluster
