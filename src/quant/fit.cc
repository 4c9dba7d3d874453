#include "quant/fit.h"

#include <algorithm>
#include <cmath>

namespace recua::quant {
namespace {

constexpr std::size_t kLanes = 8;

/// A sum in kLanes partial sums: the compiler may not reorder additions, so we do, for its vectors.
/// term(i) gives the i-th addend; n is a multiple of kLanes.
template <class Term>
float lane_sum(std::size_t n, Term term) {
  std::array<float, kLanes> sums{};
  for (std::size_t i = 0; i < n; i += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) sums[l] += term(i + l);
  }
  float out = 0.0F;
  for (const float sum : sums) out += sum;
  return out;
}

float clamped_nearest(float v, float low, float high) {
  return nearest(std::min(std::max(v, low), high));
}

}  // namespace

ScaleFit fit_scale(const float* x, const float* w, std::size_t n, int q_min, int q_max,
                   int n_steps) {
  float largest = 0.0F;  // By magnitude, with its sign.
  for (std::size_t i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  ScaleFit best;
  if (std::fabs(largest) < 0x1.0p-40F) return best;

  // For given q the best scale is sum(w x q) / sum(w q q), which explains sum(w x q)^2 / sum(w q q)
  // of the sum of squares: so no candidate needs its error computed, only these two sums.
  const auto low = static_cast<float>(q_min);
  const auto high = static_cast<float>(q_max);
  std::array<float, kFitMax> q{};
  float explained_best = -1.0F;
  float inverse_best = 0.0F;
  for (int step = -n_steps; step <= n_steps; ++step) {
    // The largest element goes to about q_min, up to half a step of the grid beyond or before it.
    const float inverse =
        (low + 0.9F * static_cast<float>(step) / static_cast<float>(n_steps + 1)) / largest;
    for (std::size_t i = 0; i < n; ++i) q[i] = clamped_nearest(x[i] * inverse, low, high);
    const float wxq = lane_sum(n, [&](std::size_t i) { return w[i] * x[i] * q[i]; });
    const float wqq = lane_sum(n, [&](std::size_t i) { return w[i] * q[i] * q[i]; });
    if (wqq <= 0.0F) continue;
    const float explained = wxq / wqq * wxq;
    if (explained > explained_best) {
      explained_best = explained;
      inverse_best = inverse;
      best.scale = wxq / wqq;
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    best.q[i] = static_cast<std::int8_t>(clamped_nearest(x[i] * inverse_best, low, high));
  }
  return best;
}

ScaleMinFit fit_scale_min(const float* x, const float* w, std::size_t n, int q_max,
                          bool min_not_negative, int n_steps) {
  float low = x[0];
  float high = x[0];
  for (std::size_t i = 1; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (min_not_negative) low = std::min(low, 0.0F);
  ScaleMinFit best;
  best.min = -low;
  if (high - low < 0x1.0p-40F) {
    if (min_not_negative && std::fabs(low) < 0x1.0p-40F) best.min = 0.0F;
    return best;
  }

  // u = x - low: with the offset gone, the sums below do not cancel.
  std::array<float, kFitMax> u{};
  for (std::size_t i = 0; i < n; ++i) u[i] = x[i] - low;
  const auto top = static_cast<float>(q_max);
  const float sum_w = lane_sum(n, [&](std::size_t i) { return w[i]; });
  const float sum_wu = lane_sum(n, [&](std::size_t i) { return w[i] * u[i]; });
  const float sum_wuu = lane_sum(n, [&](std::size_t i) { return w[i] * u[i] * u[i]; });
  std::array<float, kFitMax> q{};
  float error_best = INFINITY;
  for (int step = -n_steps; step <= n_steps; ++step) {
    // From one that leaves room at the end of the range to one that cuts outliers off.
    const float inverse =
        (top + 0.9F * static_cast<float>(step) / static_cast<float>(n_steps + 1)) / (high - low);
    for (std::size_t i = 0; i < n; ++i) q[i] = clamped_nearest(u[i] * inverse, 0.0F, top);
    const float wq = lane_sum(n, [&](std::size_t i) { return w[i] * q[i]; });
    const float wqq = lane_sum(n, [&](std::size_t i) { return w[i] * q[i] * q[i]; });
    const float wqu = lane_sum(n, [&](std::size_t i) { return w[i] * q[i] * u[i]; });

    // d/dscale and d/dshift of sum w (scale q - shift - u)^2 are zero:
    //   scale wqq - shift wq = wqu,   scale wq - shift sum_w = sum_wu.
    const float determinant = sum_w * wqq - wq * wq;
    if (determinant <= 0.0F) continue;
    float scale = (sum_w * wqu - wq * sum_wu) / determinant;
    float shift = (wq * wqu - wqq * sum_wu) / determinant;
    if (min_not_negative && shift < low) {  // min = shift - low.
      shift = low;
      scale = (wqu + shift * wq) / wqq;
    }
    if (!(scale > 0.0F)) continue;
    // sum w (scale q - shift - u)^2, multiplied out.
    const float error = scale * scale * wqq + shift * shift * sum_w + sum_wuu -
                        2.0F * (scale * shift * wq + scale * wqu - shift * sum_wu);
    if (error < error_best) {
      error_best = error;
      best.scale = scale;
      best.min = shift - low;
    }
  }
  if (error_best == INFINITY) best.scale = (high - low) / top;
  const float inverse = 1.0F / best.scale;
  for (std::size_t i = 0; i < n; ++i) {
    best.q[i] = static_cast<std::int8_t>(clamped_nearest((x[i] + best.min) * inverse, 0.0F, top));
  }
  return best;
}

}  // namespace recua::quant
