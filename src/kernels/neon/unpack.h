#pragma once
/// What the formats of packed weights (kernels/packed.h) share when they are unpacked: the numbers
/// of eight rows become signed bytes, the offset of the format taken off, so that a product knows
/// no formats. Only files of neon/ include this.
///
/// A format has kPieceBytes, kBlock (32 or 256), kHasMin and unpack(piece, unpacked), and with
/// blocks of 256 kGroups and kGroup, whose elements share a scale:
///   value = d * q + m                                blocks of 32, m only with kHasMin
///   value = d * scale[g] * q - dmin * min[g]         blocks of 256, dmin only with kHasMin

#include "kernels/neon/common.h"
#include "kernels/packed.h"

namespace recua::kernels::neon {

struct Unpacked32 {
  alignas(16) std::int8_t q[8 * 32];  // Vector i: elements 4 i .. 4 i + 3 of row 0, of row 1 ...
  alignas(16) float d[8];
  alignas(16) float m[8];
};

template <std::size_t kGroups>
struct Unpacked256 {
  alignas(16) std::int8_t q[64 * 32];
  alignas(16) std::int32_t scale[kGroups][8];
  alignas(16) std::int16_t min[kGroups][8];
  alignas(16) float d[8];
  alignas(16) float dmin[8];
};

RECUA_NEON_INLINE void put8_f16(const std::uint8_t* from, float* to) {
  vst1q_f32(to, load4_f16(from));
  vst1q_f32(to + 4, load4_f16(from + 8));
}

/// Sixteen of a vector's bytes less kOffset.
template <int kOffset>
RECUA_NEON_INLINE void put16(std::int8_t* to, uint8x16_t q) {
  vst1q_s8(to, vsubq_s8(vreinterpretq_s8_u8(q), vdupq_n_s8(kOffset)));
}

RECUA_NEON_INLINE void put_scales(int16x8_t scales, std::int32_t* to) {
  vst1q_s32(to, vmovl_s16(vget_low_s16(scales)));
  vst1q_s32(to + 4, vmovl_high_s16(scales));
}
RECUA_NEON_INLINE int16x8_t widen_u8(uint8x8_t bytes) {
  return vreinterpretq_s16_u16(vmovl_u8(bytes));
}

RECUA_NEON_INLINE uint8x16_t low_nibbles(uint8x16_t bytes) {
  return vandq_u8(bytes, vdupq_n_u8(15));
}
RECUA_NEON_INLINE uint8x16_t high_nibbles(uint8x16_t bytes) { return vshrq_n_u8(bytes, 4); }

/// Bit `bit` of each byte as bit kTo, all others 0.
template <int kTo>
RECUA_NEON_INLINE uint8x16_t one_bit(uint8x16_t bytes, std::size_t bit) {
  const int8x16_t left = vdupq_n_s8(static_cast<std::int8_t>(kTo - static_cast<int>(bit)));
  return vandq_u8(vshlq_u8(bytes, left), vdupq_n_u8(1U << kTo));
}

/// Bits 2 j and 2 j + 1 of each byte as bits kTo and kTo + 1, all others 0.
template <int kTo>
RECUA_NEON_INLINE uint8x16_t two_bits(uint8x16_t bytes, std::size_t j) {
  const int8x16_t left = vdupq_n_s8(static_cast<std::int8_t>(kTo - 2 * static_cast<int>(j)));
  return vandq_u8(vshlq_u8(bytes, left), vdupq_n_u8(3U << kTo));
}

RECUA_NEON_INLINE uint8x16_t look_up(const std::int8_t* table, uint8x16_t nibbles) {
  return vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(table), nibbles));
}

/// The numbers of group g < 8 of eight rows, from six-bit planes.
RECUA_NEON_INLINE uint8x8_t six_bits(const std::uint8_t* planes, std::size_t g) {
  const uint8x8_t four = load8(planes + 8 * (g % 4));
  const uint8x8_t low = g < 4 ? vand_u8(four, vdup_n_u8(15)) : vshr_n_u8(four, 4);
  const int8x8_t right = vdup_n_s8(static_cast<std::int8_t>(-2 * static_cast<int>(g / 2)));
  const uint8x8_t two = vand_u8(vshl_u8(load8(planes + 32 + 8 * (g % 2)), right), vdup_n_u8(3));
  return vorr_u8(low, vshl_n_u8(two, 4));
}

}  // namespace recua::kernels::neon
