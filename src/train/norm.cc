#include "train/norm.h"

#include <cmath>

namespace recua::train {

void rms_norm(Team& team, const NormShape& shape, const float* x, const float* weight, float* y) {
  const std::size_t n = shape.n;
  team.for_parts(shape.n_rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      team.kernels().rms_norm(x + r * n, weight, n, shape.eps, y + r * n);
    }
  });
}

// d s / d x_i = -s^3 x_i / n, so dx_i = s g_i + (sum_j g_j x_j) * (-s^3 x_i / n).
void rms_norm_backward(Team& team, const NormShape& shape, const float* x, const float* weight,
                       const float* dy, float* s, float* dx, bool accumulate, float* d_weight) {
  const std::size_t n = shape.n;
  team.for_parts(shape.n_rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      double sum_sq = 0.0;
      for (std::size_t i = 0; i < n; ++i) {
        sum_sq += static_cast<double>(x[r * n + i]) * static_cast<double>(x[r * n + i]);
      }
      const double mean = sum_sq / static_cast<double>(n);
      s[r] = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(shape.eps)));
    }
  });
  // Before dx, which may lie where dy is.
  const std::size_t n_weights = d_weight != nullptr ? n : 0;
  team.for_parts(n_weights, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = 0; r < shape.n_rows; ++r) {
      for (std::size_t i = begin; i < end; ++i) d_weight[i] += dy[r * n + i] * x[r * n + i] * s[r];
    }
  });
  team.for_parts(shape.n_rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const float* const row = x + r * n;
      const float* const d_row = dy + r * n;
      float* const out = dx + r * n;
      double dot = 0.0;
      for (std::size_t i = 0; i < n; ++i) {
        dot += static_cast<double>(d_row[i] * weight[i]) * static_cast<double>(row[i]);
      }
      const double scale = static_cast<double>(s[r]);
      const auto back = static_cast<float>(dot * scale * scale * scale / static_cast<double>(n));
      for (std::size_t i = 0; i < n; ++i) {
        const float value = s[r] * d_row[i] * weight[i] - back * row[i];
        out[i] = accumulate ? out[i] + value : value;
      }
    }
  });
}

}  // namespace recua::train
