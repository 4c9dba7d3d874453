// Rows of keys and values as the cache holds them.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/attention.h"
#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::kernels::scalar {
namespace {

// The element of the largest magnitude, made finite; 0 if there is none.
float largest_of(const float* x) {
  float largest = 0.0F;
  for (std::size_t i = 0; i < 32; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];  // A NaN is passed over.
  }
  return std::fmin(std::fmax(largest, -quant::kF16Max), quant::kF16Max);
}

// x / scale to the nearest within [min, max]; 0 of what is no number.
int rounded(float x, float inverse, float min, float max) {
  const float q = x * inverse;
  if (std::isnan(q)) return 0;
  return static_cast<int>(std::nearbyintf(std::fmin(std::fmax(q, min), max)));
}

}  // namespace

void cache_q8_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t b = 0; b < n / 32; ++b) {
    quant::BlockQ8_0 block{};
    block.d = quant::f32_to_f16(std::fabs(largest_of(x + 32 * b)) / 127.0F);
    const float d = quant::f16_to_f32(block.d);  // Round by the scale that will be read back.
    const float inverse = d == 0.0F ? 0.0F : 1.0F / d;
    for (std::size_t i = 0; i < 32; ++i) {
      block.q[i] = static_cast<std::int8_t>(rounded(x[32 * b + i], inverse, -127.0F, 127.0F));
    }
    std::memcpy(out + b * sizeof(block), &block, sizeof(block));
  }
}

void cache_q4_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t b = 0; b < n / 32; ++b) {
    quant::BlockQ4_0 block{};
    block.d = quant::f32_to_f16(largest_of(x + 32 * b) / -8.0F);
    const float d = quant::f16_to_f32(block.d);
    const float inverse = d == 0.0F ? 0.0F : 1.0F / d;
    for (std::size_t i = 0; i < 16; ++i) {
      const int low = rounded(x[32 * b + i], inverse, -8.0F, 7.0F) + 8;
      const int high = rounded(x[32 * b + 16 + i], inverse, -8.0F, 7.0F) + 8;
      block.qs[i] = static_cast<std::uint8_t>(low | high << 4);
    }
    std::memcpy(out + b * sizeof(block), &block, sizeof(block));
  }
}

}  // namespace recua::kernels::scalar
