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

AdamStep::AdamStep(const AdamOptions& options, double lr, std::uint64_t step, float factor)
    : keep_matrix_(static_cast<float>(1.0 - lr * options.weight_decay)) {
  const auto t = static_cast<double>(step + 1);
  args_.factor = factor;
  args_.b1 = static_cast<float>(options.beta1);
  args_.b2 = static_cast<float>(options.beta2);
  // m / (1 - b1^t) * lr = m * rate.
  args_.rate = static_cast<float>(lr / (1.0 - std::pow(options.beta1, t)));
  args_.v_scale = static_cast<float>(1.0 / (1.0 - std::pow(options.beta2, t)));
  args_.eps = static_cast<float>(options.eps);
}

void AdamStep::apply(Team& team, bool is_matrix, std::size_t n, const Arrays& at) const {
  team.for_parts(n, [&](std::size_t begin, std::size_t end) {
    kernels::AdamArgs piece = args_;
    piece.gradient = at.gradients + begin;
    piece.p = at.params + begin;
    piece.m = at.m + begin;
    piece.v = at.v + begin;
    piece.n = end - begin;
    piece.keep = is_matrix ? keep_matrix_ : 1.0F;
    team.kernels().adam(piece);
  });
}

void adam_step(Team& team, const ParameterLayout& layout, const AdamOptions& options, double lr,
               std::uint64_t step, float factor, std::span<const float> gradients,
               const AdamState& state) {
  const AdamStep adam(options, lr, step, factor);
  for (const TensorSpec& tensor : layout.tensors()) {
    adam.apply(team, tensor.is_matrix, tensor.size(),
               {.gradients = gradients.data() + tensor.offset,
                .params = state.params.data() + tensor.offset,
                .m = state.m.data() + tensor.offset,
                .v = state.v.data() + tensor.offset});
  }
}

}  // namespace recua::train
