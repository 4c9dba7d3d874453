#pragma once
/// What the NEON kernels share. Only files of neon/ include this.
///
/// Everything is forced inline, and neither this nor those files use inline functions of the
/// standard library: a copy compiled for newer CPUs could be the one that the linker keeps for all.

#include <arm_neon.h>
#include <cstddef>
#include <cstdint>

#define RECUA_NEON_INLINE [[gnu::always_inline]] static inline

/// In front of the loops of a tile, whose sums stay in registers only when nothing indexes them at
/// run time.
#define RECUA_UNROLL _Pragma("GCC unroll 16")

namespace recua::kernels::neon {

RECUA_NEON_INLINE std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

/// Bytes from any address.
RECUA_NEON_INLINE uint8x16_t load16(const void* p) {
  return vld1q_u8(static_cast<const std::uint8_t*>(p));
}
RECUA_NEON_INLINE uint8x8_t load8(const void* p) {
  return vld1_u8(static_cast<const std::uint8_t*>(p));
}
RECUA_NEON_INLINE float32x4_t load4_f16(const void* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(load8(p)));
}
RECUA_NEON_INLINE float32x4_t load4_bf16(const void* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(load8(p)), 16));
}
RECUA_NEON_INLINE float load_f16(const void* p) {
  std::uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

/// The first n of 4 numbers and zeros, and the opposite; n <= 4.
RECUA_NEON_INLINE float32x4_t load_first(const float* p, std::size_t n) {
  float all[4] = {};
  __builtin_memcpy(all, p, n * sizeof(float));
  return vld1q_f32(all);
}
RECUA_NEON_INLINE void store_first(float* p, std::size_t n, float32x4_t v) {
  float all[4];
  vst1q_f32(all, v);
  __builtin_memcpy(p, all, n * sizeof(float));
}

/// a where it is the larger one, else b: also where either is no number.
RECUA_NEON_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}

/// Of lanes that are all numbers.
RECUA_NEON_INLINE float max_lanes(float32x4_t v) { return vmaxvq_f32(v); }

/// Sum of the lanes, always as (0 + 1) + (2 + 3).
RECUA_NEON_INLINE float sum_lanes(float32x4_t v) { return vaddvq_f32(v); }

/// exp(x) within 2^-21 relative, for x clamped to [-87.3, 88]; a NaN stays one. The derivation is
/// that of avx2/common.h, and so are the constants.
RECUA_NEON_INLINE float32x4_t exp_lanes(float32x4_t x) {
  x = vminq_f32(vdupq_n_f32(88.0F), vmaxq_f32(vdupq_n_f32(-87.3F), x));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504F));
  float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375F));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4F));
  float32x4_t p = vdupq_n_f32(1.9875691500e-4F);
  p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3F), p, r);
  p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3F), p, r);
  p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2F), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1F), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1F), p, r);
  p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0F));
  // n is in [-126, 127] (0 for a NaN), so 2^n is a normal number made from its exponent bits.
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(p, vreinterpretq_f32_s32(exponent));
}

/// exp(x) of what is never above 0, and 0 below -87.
RECUA_NEON_INLINE float32x4_t exp_or_zero(float32x4_t x) {
  const uint32x4_t vanishes = vcltq_f32(x, vdupq_n_f32(-87.0F));
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(exp_lanes(x)), vanishes));
}

}  // namespace recua::kernels::neon
