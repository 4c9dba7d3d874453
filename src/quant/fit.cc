#include "quant/fit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace recua::quant {
namespace {

// Four floats at once, by the vector extension that g++ and clang share (SSE2, NEON). Sums are kept
// per lane and added up at the end, in the same order on every processor.
using Float4 = float __attribute__((vector_size(16)));
constexpr std::size_t kLanes = 4;

Float4 load(const float* from) {
  Float4 out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

Float4 all(float v) { return Float4{v, v, v, v}; }

float total(Float4 sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

Float4 clamped_nearest(Float4 v, Float4 low, Float4 high) {
  v = v < low ? low : v;
  v = v > high ? high : v;
  return (v + 12582912.0F) - 12582912.0F;  // nearest(), per lane.
}

float clamped_nearest(float v, float low, float high) {
  return nearest(std::min(std::max(v, low), high));
}

}  // namespace

template <std::size_t kN>
ScaleFit fit_scale(const float* x, const float* w, int q_min, int q_max, int n_steps) {
  float largest = 0.0F;  // By magnitude, with its sign.
  for (std::size_t i = 0; i < kN; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  ScaleFit best;
  if (std::fabs(largest) < 0x1.0p-40F) return best;

  // For given q the best scale is sum(w x q) / sum(w q q), which explains sum(w x q)^2 / sum(w q q)
  // of the sum of squares: so no candidate needs its error computed, only these two sums.
  const auto low = static_cast<float>(q_min);
  const auto high = static_cast<float>(q_max);
  float explained_best = -1.0F;
  float inverse_best = 0.0F;
  for (int step = -n_steps; step <= n_steps; ++step) {
    // The largest element goes to about q_min, up to half a step of the grid beyond or before it.
    const float inverse =
        (low + 0.9F * static_cast<float>(step) / static_cast<float>(n_steps + 1)) / largest;
    Float4 wxq_lanes{};
    Float4 wqq_lanes{};
    for (std::size_t i = 0; i < kN; i += kLanes) {
      const Float4 x4 = load(x + i);
      const Float4 q = clamped_nearest(x4 * inverse, all(low), all(high));
      const Float4 wq = load(w + i) * q;
      wxq_lanes += wq * x4;
      wqq_lanes += wq * q;
    }
    const float wxq = total(wxq_lanes);
    const float wqq = total(wqq_lanes);
    if (wqq <= 0.0F) continue;
    const float explained = wxq / wqq * wxq;
    if (explained > explained_best) {
      explained_best = explained;
      inverse_best = inverse;
      best.scale = wxq / wqq;
    }
  }
  for (std::size_t i = 0; i < kN; ++i) {
    best.q[i] = static_cast<std::int8_t>(clamped_nearest(x[i] * inverse_best, low, high));
  }
  return best;
}

template <std::size_t kN>
ScaleMinFit fit_scale_min(const float* x, const float* w, int q_max, bool min_not_negative,
                          int n_steps) {
  float low = x[0];
  float high = x[0];
  for (std::size_t i = 1; i < kN; ++i) {
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
  std::array<float, kN> u{};
  for (std::size_t i = 0; i < kN; ++i) u[i] = x[i] - low;
  const auto top = static_cast<float>(q_max);
  float sum_w = 0.0F;
  float sum_wu = 0.0F;
  float sum_wuu = 0.0F;
  for (std::size_t i = 0; i < kN; ++i) {
    sum_w += w[i];
    sum_wu += w[i] * u[i];
    sum_wuu += w[i] * u[i] * u[i];
  }
  float error_best = INFINITY;
  for (int step = -n_steps; step <= n_steps; ++step) {
    // From one that leaves room at the end of the range to one that cuts outliers off.
    const float inverse =
        (top + 0.9F * static_cast<float>(step) / static_cast<float>(n_steps + 1)) / (high - low);
    Float4 wq_lanes{};
    Float4 wqq_lanes{};
    Float4 wqu_lanes{};
    for (std::size_t i = 0; i < kN; i += kLanes) {
      const Float4 u4 = load(u.data() + i);
      const Float4 q = clamped_nearest(u4 * inverse, all(0.0F), all(top));
      const Float4 wq = load(w + i) * q;
      wq_lanes += wq;
      wqq_lanes += wq * q;
      wqu_lanes += wq * u4;
    }
    const float wq = total(wq_lanes);
    const float wqq = total(wqq_lanes);
    const float wqu = total(wqu_lanes);

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
  for (std::size_t i = 0; i < kN; ++i) {
    best.q[i] = static_cast<std::int8_t>(clamped_nearest((x[i] + best.min) * inverse, 0.0F, top));
  }
  return best;
}

template ScaleFit fit_scale<16>(const float*, const float*, int, int, int);
template ScaleFit fit_scale<32>(const float*, const float*, int, int, int);
template ScaleMinFit fit_scale_min<16>(const float*, const float*, int, bool, int);
template ScaleMinFit fit_scale_min<32>(const float*, const float*, int, bool, int);

}  // namespace recua::quant
