#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace recua::train {

double Schedule::at(std::uint64_t step) const {
  if (step < n_warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(n_warmup);
  if (step >= n_steps) return lr_final;
  const double done =
      static_cast<double>(step - n_warmup) / static_cast<double>(n_steps - n_warmup);
  return lr_final + (lr - lr_final) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

float clip_factor(const AdamOptions& options, double norm) {
  if (options.clip_norm <= 0.0 || norm <= options.clip_norm) return 1.0F;
  return static_cast<float>(options.clip_norm / norm);
}

void adam_step(Team& team, const ParameterLayout& layout, const AdamOptions& options, double lr,
               std::uint64_t step, float factor, std::span<const float> gradients,
               const AdamState& state) {
  const auto t = static_cast<double>(step + 1);
  // m / (1 - b1^t) * lr = m * rate.
  const auto rate = static_cast<float>(lr / (1.0 - std::pow(options.beta1, t)));
  const auto v_scale = static_cast<float>(1.0 / (1.0 - std::pow(options.beta2, t)));
  for (const TensorSpec& tensor : layout.tensors()) {
    const double decay = tensor.is_matrix ? lr * options.weight_decay : 0.0;
    team.for_parts(tensor.size(), [&](std::size_t begin, std::size_t end) {
      const std::size_t at = tensor.offset + begin;
      team.kernels().adam({.gradient = gradients.data() + at,
                           .p = state.params.data() + at,
                           .m = state.m.data() + at,
                           .v = state.v.data() + at,
                           .n = end - begin,
                           .factor = factor,
                           .b1 = static_cast<float>(options.beta1),
                           .b2 = static_cast<float>(options.beta2),
                           .keep = static_cast<float>(1.0 - decay),
                           .rate = rate,
                           .v_scale = v_scale,
                           .eps = static_cast<float>(options.eps)});
    });
  }
}

}  // namespace recua::train
