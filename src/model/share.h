#pragma once
/// How the ranks of a tensor split divide the layers they have in common: attention by heads, the
/// feed-forward (that of each expert, too) by columns, the embedding table and the output matrix by
/// tokens. docs/parallelism.md tells which tensor is cut how; model/tensor_part.h does it.
///
/// A share is data: the plan computes all of them once and tells every rank, since each has to know
/// where the others' parts begin. Threads: any; no state.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace recua::model {

struct HyperParams;

/// The items [begin, end).
struct Range {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  [[nodiscard]] constexpr std::uint32_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

/// One rank's part. All ranks' parts of heads, ffn and vocab follow one another in rank order,
/// without gaps; none is empty.
struct Share {
  Range heads = {};     // Query heads.
  Range kv_heads = {};  // Those that they use. Ranks whose query heads share one have it both.
  Range ffn = {};       // Columns inside the feed-forward: rows of gate and up, inputs of down.
  Range vocab = {};     // Tokens.

  friend bool operator==(const Share&, const Share&) = default;
};

/// The only rank's share.
Share whole_share(const HyperParams& hp);

/// Shares as near as can be to the ranks' speeds, whose unit does not matter: what is made smallest
/// is the largest (part / speed). A pure function: the same numbers on every machine.
/// kInvalidArgument: more ranks than the model has query heads (says how many work), no speeds, or
/// one that is not above 0.
Result<std::vector<Share>> divide(const HyperParams& hp, std::span<const double> speeds);

/// Whether shares, perhaps from a peer, divide this model into n_ranks parts as Share says.
/// kInvalidArgument: names the rank, the range and what would be right.
Result<void> check_shares(const HyperParams& hp, std::uint32_t n_ranks,
                          std::span<const Share> shares);

}  // namespace recua::model
