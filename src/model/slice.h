#pragma once
/// Slice: the part of a model that one process holds, a range of layers and a share of each.
///
/// The slice with the first layer also embeds tokens; the one with the last layer also has the
/// output norm and matrix and samples. A whole model is one slice.

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/share.h"

namespace recua::model {

struct Slice {
  std::uint32_t layer_begin = 0;
  std::uint32_t layer_end = 0;  // One past the last.
  std::uint32_t n_layers = 0;   // Of the whole model.
  std::uint32_t rank = 0;       // Share of heads and columns: rank of n_ranks.
  std::uint32_t n_ranks = 1;
  std::vector<Share> shares = {};  // All ranks' (model/share.h). Empty: one rank has everything.

  [[nodiscard]] bool is_first() const { return layer_begin == 0; }
  [[nodiscard]] bool is_last() const { return layer_end == n_layers; }
  friend bool operator==(const Slice&, const Slice&) = default;
};

/// Whether the layers, the rank and the shares of a slice, perhaps from a peer, fit the model.
/// kInvalidArgument: names what does not, and what would be right.
Result<void> check_slice(const Slice& slice, const HyperParams& hp);

/// The slice's own part of its layers. The slice was checked.
Share own_share(const Slice& slice, const HyperParams& hp);

/// Whether a slice needs the tensor of this name ("blk.3.attn_q.weight", "output.weight"...).
/// Each rank of a split needs a part of it, or all of it (model/tensor_part.h).
/// tied: the model has no output matrix of its own, the last slice uses the embedding table.
bool slice_needs(const Slice& slice, bool tied, std::string_view tensor_name);

}  // namespace recua::model
