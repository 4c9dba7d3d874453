// Rows as the cache holds them, 32 numbers at a time; each step rounds as the scalar code does.
#include "kernels/attention.h"
#include "kernels/neon/common.h"

namespace recua::kernels::neon {
namespace {

// The first element of the largest magnitude, made finite; 0 if there is none.
RECUA_NEON_INLINE float largest_of(const float* x) {
  float32x4_t maxima = vdupq_n_f32(0.0F);
  for (std::size_t i = 0; i < 32; i += 4) maxima = larger(vabsq_f32(vld1q_f32(x + i)), maxima);
  const float max = max_lanes(maxima);
  if (max == 0.0F) return 0.0F;  // Not -0, and not what stands next to nothing but NaN.
  std::size_t i = 0;
  while (x[i] != max && x[i] != -max) ++i;
  constexpr float kF16Max = 65504.0F;
  return x[i] > kF16Max ? kF16Max : x[i] < -kF16Max ? -kF16Max : x[i];
}

// Four numbers times inverse within [min, max]. A NaN stays one in all of this, and becomes 0 when
// it is converted.
RECUA_NEON_INLINE int16x4_t round4(const float* x, float inverse, float min, float max) {
  const float32x4_t q = vmulq_n_f32(vld1q_f32(x), inverse);
  return vmovn_s32(vcvtnq_s32_f32(vminq_f32(vmaxq_f32(q, vdupq_n_f32(min)), vdupq_n_f32(max))));
}

RECUA_NEON_INLINE int8x16_t round16(const float* x, float inverse, float min, float max) {
  const int16x8_t low =
      vcombine_s16(round4(x, inverse, min, max), round4(x + 4, inverse, min, max));
  const int16x8_t high =
      vcombine_s16(round4(x + 8, inverse, min, max), round4(x + 12, inverse, min, max));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

// Writes the scale as F16; returns the inverse of what will be read back, 0 for none.
RECUA_NEON_INLINE float put_scale(float scale, std::byte* out) {
  const float16x4_t half = vcvt_f16_f32(vdupq_n_f32(scale));
  const std::uint16_t bits = vget_lane_u16(vreinterpret_u16_f16(half), 0);
  __builtin_memcpy(out, &bits, sizeof(bits));
  const float d = vgetq_lane_f32(vcvt_f32_f16(half), 0);
  return d == 0.0F ? 0.0F : 1.0F / d;
}

}  // namespace

void cache_q8_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t i = 0; i < n; i += 32, out += 34) {
    const float largest = largest_of(x + i);
    const float inverse = put_scale((largest < 0.0F ? -largest : largest) / 127.0F, out);
    auto* const to = reinterpret_cast<std::int8_t*>(out + 2);
    vst1q_s8(to, round16(x + i, inverse, -127.0F, 127.0F));
    vst1q_s8(to + 16, round16(x + i + 16, inverse, -127.0F, 127.0F));
  }
}

void cache_q4_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t i = 0; i < n; i += 32, out += 18) {
    const float inverse = put_scale(largest_of(x + i) / -8.0F, out);
    const int8x16_t eight = vdupq_n_s8(8);
    const int8x16_t low = vaddq_s8(round16(x + i, inverse, -8.0F, 7.0F), eight);
    const int8x16_t high = vaddq_s8(round16(x + i + 16, inverse, -8.0F, 7.0F), eight);
    vst1q_s8(reinterpret_cast<std::int8_t*>(out + 2), vorrq_s8(low, vshlq_n_s8(high, 4)));
  }
}

}  // namespace recua::kernels::neon
