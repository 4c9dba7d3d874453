#include "kernels/row_ops.h"

#include <cmath>

#include "quant/half.h"

namespace recua::kernels::scalar {

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out) {
  double sum_sq = 0.0;
  for (std::size_t i = 0; i < n; ++i) sum_sq += static_cast<double>(x[i]) * x[i];
  const double mean = sum_sq / static_cast<double>(n);
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
  for (std::size_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const float minus = -gate[i] > 88.0F ? 88.0F : -gate[i];  // A NaN passes.
    out[i] = gate[i] / (1.0F + std::exp(minus)) * up[i];
  }
}

void add(const float* a, const float* b, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void scale_add(float scale, const float* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = std::fmaf(scale, x[i], out[i]);
}

namespace {
void rotate(float& a, float& b, float cos, float sin) {
  const float a_old = a;
  a = a_old * cos - b * sin;
  b = b * cos + a_old * sin;
}
}  // namespace

void rope_interleaved(float* x, const float* table, std::size_t n_rot) {
  for (std::size_t j = 0; j < n_rot; j += 2) rotate(x[j], x[j + 1], table[j], table[j + 1]);
}

void rope_split_half(float* x, const float* table, std::size_t n_rot) {
  const std::size_t half = n_rot / 2;
  for (std::size_t j = 0; j < half; ++j) {
    rotate(x[j], x[j + half], table[2 * j], table[2 * j + 1]);
  }
}

void f32_to_f16(const float* x, std::size_t n, std::uint16_t* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = quant::f32_to_f16(x[i]);
}

}  // namespace recua::kernels::scalar
