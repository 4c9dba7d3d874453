#pragma once
/// The least-squares fits under quantize_row(): some floats by a scale (and an offset) and small
/// integers.
///
/// Weights w say how much an element's squared error counts. kN, the number of floats, is 16 or 32.
/// All input is finite and at most 65504 in magnitude, so that no sum overflows.

#include <array>
#include <cstddef>
#include <cstdint>

namespace recua::quant {

inline constexpr std::size_t kFitMax = 32;

/// x[i] ~ scale * q[i].
struct ScaleFit {
  float scale = 0.0F;
  std::array<std::int8_t, kFitMax> q{};
};

/// Minimizes sum w (x - scale q)^2 over scale and integers q in [q_min, q_max], q_min < 0 < q_max.
/// The scale may be negative: the range has one more step on its negative side, and the largest
/// element takes it. n_steps: how many scales are tried on each side of the plain one.
template <std::size_t kN>
ScaleFit fit_scale(const float* x, const float* w, int q_min, int q_max, int n_steps);

/// x[i] ~ scale * q[i] - min, scale >= 0.
struct ScaleMinFit {
  float scale = 0.0F;
  float min = 0.0F;
  std::array<std::int8_t, kFitMax> q{};
};

/// Minimizes sum w (x - scale q + min)^2 over scale, min and integers q in [0, q_max]. With
/// min_not_negative the offset can only lower, as the K types store it.
template <std::size_t kN>
ScaleMinFit fit_scale_min(const float* x, const float* w, int q_max, bool min_not_negative,
                          int n_steps);

/// The integer nearest to v, ties to even, for |v| < 2^22: adding 1.5 * 2^23 leaves no fraction
/// bits.
inline float nearest(float v) { return (v + 12582912.0F) - 12582912.0F; }

}  // namespace recua::quant
