#include "train/rope.h"

#include <cmath>

#include "model/rope.h"

namespace recua::train {

RopeTable::RopeTable(const model::HyperParams& hp, std::span<const float> divisors,
                     std::size_t n_ctx)
    : kind_(hp.architecture->rope),
      head_dim_(hp.head_dim),
      n_rot_(hp.rope_dim),
      forward_(n_ctx * hp.rope_dim),
      backward_(n_ctx * hp.rope_dim) {
  const model::RopeFrequencies rope = model::rope_frequencies(hp, divisors);
  for (std::size_t p = 0; p < n_ctx; ++p) {
    for (std::size_t j = 0; j < n_rot_ / 2; ++j) {
      // As the device makes its table.
      const double angle = static_cast<double>(p) * static_cast<double>(rope.inv_freq[j]);
      const auto magnitude = static_cast<double>(rope.magnitude);
      const auto cos = static_cast<float>(std::cos(angle) * magnitude);
      const auto sin = static_cast<float>(std::sin(angle) * magnitude);
      float* const to = forward_.data() + p * n_rot_ + 2 * j;
      to[0] = cos;
      to[1] = sin;
      float* const back = backward_.data() + p * n_rot_ + 2 * j;
      back[0] = cos;
      back[1] = -sin;
    }
  }
}

void RopeTable::apply(Team& team, std::span<const std::uint32_t> positions, std::size_t n_heads,
                      Turn turn, float* x) const {
  const std::vector<float>& table = turn == Turn::kForward ? forward_ : backward_;
  const auto rotate = kind_ == compute::RopeKind::kInterleaved ? team.kernels().rope_interleaved
                                                               : team.kernels().rope_split_half;
  team.for_parts(positions.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const float* const angles = table.data() + positions[r] * n_rot_;
      for (std::size_t h = 0; h < n_heads; ++h) {
        rotate(x + (r * n_heads + h) * head_dim_, angles, n_rot_);
      }
    }
  });
}

}  // namespace recua::train
