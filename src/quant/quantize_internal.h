#pragma once
/// What quantize.cc, quantize_k.cc and quantize_tables.cc share. Private to quant.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::quant {

/// F16, but what is too large becomes the largest finite one.
inline std::uint16_t saturated_f16(float v) {
  return f32_to_f16(std::min(std::max(v, -kF16Max), kF16Max));
}

/// How much the error of each element counts: large weights more, since they carry more of the
/// output, but none of them nothing. Never 0 in a group that is not all zero.
inline void error_weights(const float* x, std::size_t n, float* w) {
  float sum_sq = 0.0F;
  for (std::size_t i = 0; i < n; ++i) sum_sq += x[i] * x[i];
  const float rms = std::sqrt(sum_sq / static_cast<float>(n));
  for (std::size_t i = 0; i < n; ++i) w[i] = rms + std::fabs(x[i]);
}

// x: 256 elements, finite and at most kF16Max.
void quantize_block(const float* x, BlockQ2_K& out);
void quantize_block(const float* x, BlockQ3_K& out);
void quantize_block(const float* x, BlockQ4_K& out);
void quantize_block(const float* x, BlockQ5_K& out);
void quantize_block(const float* x, BlockQ6_K& out);
void quantize_block(const float* x, BlockIQ4_XS& out);
// The same of 32 elements.
void quantize_block(const float* x, BlockIQ4_NL& out);
void quantize_block(const float* x, BlockMXFP4& out);

}  // namespace recua::quant
