#pragma once
/// RMS norm of rows, forward and backward.

#include <cstddef>

#include "train/team.h"

namespace recua::train {

struct NormShape {
  std::size_t n_rows = 0;
  std::size_t n = 0;
  float eps = 1e-5F;
};

/// y = x * weight / sqrt(mean(x^2) + eps) for each row.   x, y: [n_rows, n], weight: [n].
void rms_norm(Team& team, const NormShape& shape, const float* x, const float* weight, float* y);

/// With s = 1 / sqrt(mean(x^2) + eps) of a row and g = dy * weight:
///   dx = s g - x s^3 / n * sum(g x), or added to dx;     d_weight += sum over rows of dy x s
/// s: memory for [n_rows]. dx may be dy (without accumulate). d_weight null: it is not wanted.
void rms_norm_backward(Team& team, const NormShape& shape, const float* x, const float* weight,
                       const float* dy, float* s, float* dx, bool accumulate, float* d_weight);

}  // namespace recua::train
