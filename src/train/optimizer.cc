#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace recua::train {

double Schedule::at(std::uint64_t step) const {
  if (step < n_warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(n_warmup);
  if (step >= n_steps || n_steps <= n_warmup) return n_steps <= n_warmup ? lr : lr_final;
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
  const auto b1 = static_cast<float>(options.beta1);
  const auto b2 = static_cast<float>(options.beta2);
  const auto eps = static_cast<float>(options.eps);
  // m / (1 - b1^t) * lr = m * rate.
  const auto rate = static_cast<float>(lr / (1.0 - std::pow(options.beta1, t)));
  const auto v_scale = static_cast<float>(1.0 / (1.0 - std::pow(options.beta2, t)));
  for (const TensorSpec& tensor : layout.tensors()) {
    const auto keep =
        static_cast<float>(1.0 - (tensor.is_matrix ? lr * options.weight_decay : 0.0));
    const float* const g = gradients.data() + tensor.offset;
    float* const p = state.params.data() + tensor.offset;
    float* const m = state.m.data() + tensor.offset;
    float* const v = state.v.data() + tensor.offset;
    team.for_parts(tensor.size(), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const float gradient = g[i] * factor;
        m[i] = b1 * m[i] + (1.0F - b1) * gradient;
        v[i] = b2 * v[i] + (1.0F - b2) * gradient * gradient;
        p[i] = keep * p[i] - rate * m[i] / (std::sqrt(v[i] * v_scale) + eps);
      }
    });
  }
}

}  // namespace recua::train
