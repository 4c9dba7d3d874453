// Types whose numbers are looked up in a table: IQ4_NL, IQ4_XS and MXFP4.
//
// For the first two, scales are tried that put the largest element on or near one end of the table,
// and each is solved for the least weighted squared error given the indices that it led to. MXFP4
// has powers of two only, of which three are worth trying.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "quant/quantize_internal.h"

namespace recua::quant {
namespace {

// The index of the value nearest to v.
std::size_t nearest_iq4(float v) {
  std::size_t i = 0;
  while (i < 15 && v > 0.5F * static_cast<float>(kIQ4Values[i] + kIQ4Values[i + 1])) ++i;
  return i;
}

// The same for |v| among the eight magnitudes, the sign on top.
std::size_t nearest_fp4(float v) {
  const float magnitude = std::fabs(v);
  std::size_t i = 0;
  while (i < 7 && magnitude > 0.5F * static_cast<float>(kFp4Values[i] + kFp4Values[i + 1])) ++i;
  return v < 0.0F && i != 0 ? i + 8 : i;
}

// A factor of a scale that may be 0.
float inverse_of(float scale) { return scale == 0.0F ? 0.0F : 1.0F / scale; }

// sum of w * x * value and of w * value^2, with the indices that `inverse`, 1 / scale, leads to.
struct Fit {
  double dot = 0.0;
  double square = 0.0;
  [[nodiscard]] double gain() const { return square > 0.0 ? dot * dot / square : 0.0; }
};
Fit fit_with(const float* x, const float* w, float inverse) {
  Fit fit;
  for (std::size_t i = 0; i < 32; ++i) {
    const double value = kIQ4Values[nearest_iq4(x[i] * inverse)];
    fit.dot += static_cast<double>(w[i]) * x[i] * value;
    fit.square += static_cast<double>(w[i]) * value * value;
  }
  return fit;
}

// The scale that loses least: sum w (x - d v)^2 = sum w x^2 - dot^2 / square at d = dot / square.
float fit_iq4_scale(const float* x) {
  constexpr int kSteps = 8;  // On each side of each end.
  std::array<float, 32> w{};
  error_weights(x, 32, w.data());
  const float largest =
      *std::max_element(x, x + 32, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  if (std::fabs(largest) < std::numeric_limits<float>::min()) return 0.0F;
  double best_gain = -1.0;
  double best = 0.0;
  for (const float end : {-127.0F, 113.0F}) {
    for (int step = -kSteps; step <= kSteps; ++step) {
      const float inverse = end * (1.0F + 0.03F * static_cast<float>(step)) / largest;
      const Fit fit = fit_with(x, w.data(), inverse);
      if (!std::isfinite(inverse) || fit.gain() <= best_gain) continue;
      best_gain = fit.gain();
      best = fit.dot / fit.square;
    }
  }
  return static_cast<float>(best);
}

void put_iq4(const float* x, float d, std::uint8_t* qs) {
  const float inverse = inverse_of(d);
  for (std::size_t i = 0; i < 16; ++i) {
    qs[i] = static_cast<std::uint8_t>(nearest_iq4(x[i] * inverse) | nearest_iq4(x[i + 16] * inverse)
                                                                        << 4U);
  }
}

}  // namespace

void quantize_block(const float* x, BlockIQ4_NL& out) {
  out.d = saturated_f16(fit_iq4_scale(x));
  put_iq4(x, f16_to_f32(out.d), out.qs.data());
}

void quantize_block(const float* x, BlockIQ4_XS& out) {
  std::array<float, 8> scales{};
  for (std::size_t g = 0; g < 8; ++g) scales[g] = fit_iq4_scale(x + 32 * g);
  const float largest = *std::max_element(
      scales.begin(), scales.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  out = {};
  // Multiples are -32 .. 31 and the largest takes -32.
  out.d = saturated_f16(largest / -32.0F);
  const float d = f16_to_f32(out.d);
  const float inverse = inverse_of(d);
  for (std::size_t g = 0; g < 8; ++g) {
    const float multiple = std::clamp(std::nearbyint(scales[g] * inverse), -32.0F, 31.0F);
    set_scale_iq4_xs(out, g, static_cast<int>(multiple) + 32);
    put_iq4(x + 32 * g, d * multiple, out.qs.data() + 16 * g);
  }
}

void quantize_block(const float* x, BlockMXFP4& out) {
  std::array<float, 32> w{};
  error_weights(x, 32, w.data());
  float largest = 0.0F;
  for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
  // 2^(e - 128) * 12 is the largest number: e is such that it is at least half of `largest`.
  const int middle = largest > 0.0F ? std::ilogb(largest) + 125 : 0;
  double least = std::numeric_limits<double>::infinity();
  out = {};
  for (int e = std::max(middle - 1, 0); e <= std::max(middle + 1, 0); ++e) {
    const float d = half_of_e8m0(static_cast<std::uint8_t>(e));
    BlockMXFP4 block{.e = static_cast<std::uint8_t>(e), .qs = {}};
    double error = 0.0;
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t q = nearest_fp4(x[i] / d);
      block.qs[i % 16] = static_cast<std::uint8_t>(block.qs[i % 16] | q << (i < 16 ? 0U : 4U));
      const double off = static_cast<double>(x[i]) - static_cast<double>(d) * kFp4Values[q];
      error += w[i] * off * off;
    }
    if (error >= least) continue;
    least = error;
    out = block;
  }
}

}  // namespace recua::quant
