#include "model/slice.h"

#include <charconv>

#include <fmt/format.h>

#include "base/check.h"
#include "model/hyperparams.h"

namespace recua::model {

Result<void> check_slice(const Slice& slice, const HyperParams& hp) {
  if (slice.n_layers != hp.n_layers || slice.layer_begin >= slice.layer_end ||
      slice.layer_end > hp.n_layers) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a slice of the layers {} to {} of {}; expected at least one of the "
                             "model's {}",
                             slice.layer_begin, slice.layer_end, slice.n_layers, hp.n_layers)};
  }
  if (slice.rank >= slice.n_ranks) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a slice is rank {} of {}; expected a rank below {}", slice.rank,
                             slice.n_ranks, slice.n_ranks)};
  }
  if (slice.n_ranks == 1 && slice.shares.empty()) return ok();
  return check_shares(hp, slice.n_ranks, slice.shares);
}

Share own_share(const Slice& slice, const HyperParams& hp) {
  if (slice.shares.empty()) return whole_share(hp);
  RECUA_CHECK(slice.rank < slice.shares.size());
  return slice.shares[slice.rank];
}

bool slice_needs(const Slice& slice, bool tied, std::string_view tensor_name) {
  constexpr std::string_view kLayerPrefix = "blk.";
  if (tensor_name.starts_with(kLayerPrefix)) {
    const std::string_view rest = tensor_name.substr(kLayerPrefix.size());
    std::uint32_t layer = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    if (error != std::errc{} || end == rest.data() + rest.size() || *end != '.') return false;
    return layer >= slice.layer_begin && layer < slice.layer_end;
  }
  if (tensor_name == "token_embd.weight") return slice.is_first() || (slice.is_last() && tied);
  // Their biases too: whoever loads the slice has to see them, to refuse them.
  if (tensor_name.starts_with("output.") || tensor_name.starts_with("output_norm."))
    return slice.is_last();
  return tensor_name == "rope_freqs.weight";
}

}  // namespace recua::model
