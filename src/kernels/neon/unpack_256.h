#pragma once
/// Packed formats with blocks of 256 (kernels/neon/unpack.h). Only files of neon/ include this.
///
/// Where a format has its bits follows from quant/blocks.h: "vector i" is elements 4 i .. 4 i + 3
/// of eight rows, 32 bytes, of which each loop below takes both halves.

#include "kernels/neon/unpack_32.h"

namespace recua::kernels::neon {

/// Two bits per element: bits 2 j and 2 j + 1 of vector 8 h + v of the bytes at `from` are vector
/// 32 h + 8 j + v of the numbers. fn(bits, h, j, v, half of the vector, where it goes).
template <std::size_t kGroups, class Fn>
RECUA_NEON_INLINE void for_two_bits(const std::uint8_t* from, Unpacked256<kGroups>& to, Fn fn) {
  for (std::size_t i = 0; i < 32; ++i) {
    const std::size_t h = i / 16;
    const std::size_t v = i % 16 / 2;
    const std::size_t half = i % 2;
    const uint8x16_t bytes = load16(from + 16 * i);
    RECUA_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      fn(two_bits<0>(bytes, j), h, j, v, half, to.q + 32 * (32 * h + 8 * j + v) + 16 * half);
    }
  }
}

template <>
struct Format<quant::DataType::kQ2_K> {
  static constexpr std::size_t kPieceBytes = 672;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 16;
  static constexpr std::size_t kGroups = 16;
  static constexpr bool kHasMin = true;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put8_f16(piece, to.d);
    put8_f16(piece + 16, to.dmin);
    for (std::size_t g = 0; g < kGroups; ++g) {
      const uint8x8_t both = load8(piece + 32 + 8 * (g / 2 + g % 2 * 8));
      put_scales(widen_u8(vand_u8(both, vdup_n_u8(15))), to.scale[g]);
      vst1q_s16(to.min[g], widen_u8(vshr_n_u8(both, 4)));
    }
    for_two_bits(piece + 160, to,
                 [](uint8x16_t q, std::size_t, std::size_t, std::size_t, std::size_t,
                    std::int8_t* out) __attribute__((always_inline)) { put16<0>(out, q); });
  }
};

template <>
struct Format<quant::DataType::kQ3_K> {
  static constexpr std::size_t kPieceBytes = 880;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 16;
  static constexpr std::size_t kGroups = 16;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put8_f16(piece, to.d);
    for (std::size_t g = 0; g < kGroups; ++g) {
      const int16x8_t scales = widen_u8(six_bits(piece + 16 + g / 8 * 48, g % 8));
      put_scales(vsubq_s16(scales, vdupq_n_s16(32)), to.scale[g]);
    }
    for_two_bits(piece + 368, to,
                 [&](uint8x16_t q, std::size_t h, std::size_t j, std::size_t v, std::size_t half,
                     std::int8_t* out) __attribute__((always_inline)) {
                   const uint8x16_t third = load16(piece + 112 + 32 * v + 16 * half);
                   put16<4>(out, vorrq_u8(q, one_bit<2>(third, 4 * h + j)));
                 });
  }
};

/// What Q4_K and Q5_K have in front.
RECUA_NEON_INLINE void put_scales_and_mins(const std::uint8_t* piece, Unpacked256<8>& to) {
  put8_f16(piece, to.d);
  put8_f16(piece + 16, to.dmin);
  for (std::size_t g = 0; g < 8; ++g) {
    put_scales(widen_u8(six_bits(piece + 32, g)), to.scale[g]);
    vst1q_s16(to.min[g], widen_u8(six_bits(piece + 80, g)));
  }
}

template <>
struct Format<quant::DataType::kQ4_K> {
  static constexpr std::size_t kPieceBytes = 1152;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 32;
  static constexpr std::size_t kGroups = 8;
  static constexpr bool kHasMin = true;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put_scales_and_mins(piece, to);
    for (std::size_t i = 0; i < 64; ++i) {  // Vector 8 c + v of the bytes, half of it.
      std::int8_t* const out = to.q + 32 * (i / 16 * 16 + i % 16 / 2) + i % 2 * 16;
      const uint8x16_t bytes = load16(piece + 128 + 16 * i);
      put16<0>(out, low_nibbles(bytes));
      put16<0>(out + 8 * 32, high_nibbles(bytes));
    }
  }
};

template <>
struct Format<quant::DataType::kQ5_K> {
  static constexpr std::size_t kPieceBytes = 1408;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 32;
  static constexpr std::size_t kGroups = 8;
  static constexpr bool kHasMin = true;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put_scales_and_mins(piece, to);
    for (std::size_t i = 0; i < 64; ++i) {
      const std::size_t c = i / 16;
      std::int8_t* const out = to.q + 32 * (16 * c + i % 16 / 2) + i % 2 * 16;
      const uint8x16_t bytes = load16(piece + 384 + 16 * i);
      const uint8x16_t fifth = load16(piece + 128 + 16 * (i % 16));  // Bit g is that of group g.
      put16<0>(out, vorrq_u8(low_nibbles(bytes), one_bit<4>(fifth, 2 * c)));
      put16<0>(out + 8 * 32, vorrq_u8(high_nibbles(bytes), one_bit<4>(fifth, 2 * c + 1)));
    }
  }
};

template <>
struct Format<quant::DataType::kQ6_K> {
  static constexpr std::size_t kPieceBytes = 1680;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 16;
  static constexpr std::size_t kGroups = 16;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put8_f16(piece, to.d);
    for (std::size_t g = 0; g < kGroups; ++g) {
      put_scales(vmovl_s8(vreinterpret_s8_u8(load8(piece + 16 + 8 * g))), to.scale[g]);
    }
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t vector = i / 2;  // 8 h + v.
      const std::uint8_t* const from = piece + 144 + 96 * vector + i % 2 * 16;
      const uint8x16_t first = load16(from);
      const uint8x16_t second = load16(from + 32);
      const uint8x16_t high = load16(from + 64);
      std::int8_t* const out = to.q + 32 * (vector / 8 * 32 + vector % 8) + i % 2 * 16;
      put16<32>(out, vorrq_u8(low_nibbles(first), two_bits<4>(high, 0)));
      put16<32>(out + 8 * 32, vorrq_u8(low_nibbles(second), two_bits<4>(high, 1)));
      put16<32>(out + 16 * 32, vorrq_u8(high_nibbles(first), two_bits<4>(high, 2)));
      put16<32>(out + 24 * 32, vorrq_u8(high_nibbles(second), two_bits<4>(high, 3)));
    }
  }
};

template <>
struct Format<quant::DataType::kIQ4_XS> {
  static constexpr std::size_t kPieceBytes = 1088;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kGroup = 32;
  static constexpr std::size_t kGroups = 8;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked256<kGroups>& to) {
    put8_f16(piece, to.d);
    const int16x8_t highs = vreinterpretq_s16_u8(load16(piece + 16));
    for (std::size_t g = 0; g < kGroups; ++g) {
      const uint8x8_t lows = load8(piece + 32 + 8 * (g / 2));
      const uint8x8_t low = g % 2 == 0 ? vand_u8(lows, vdup_n_u8(15)) : vshr_n_u8(lows, 4);
      const int16x8_t right = vdupq_n_s16(static_cast<std::int16_t>(-2 * static_cast<int>(g)));
      const int16x8_t two = vandq_s16(vshlq_s16(highs, right), vdupq_n_s16(3));
      const int16x8_t all = vorrq_s16(widen_u8(low), vshlq_n_s16(two, 4));
      put_scales(vsubq_s16(all, vdupq_n_s16(32)), to.scale[g]);
    }
    for (std::size_t i = 0; i < 64; ++i) {  // Vector 4 g + v of the bytes, half of it.
      std::int8_t* const out = to.q + 32 * (i / 8 * 8 + i % 8 / 2) + i % 2 * 16;
      const uint8x16_t bytes = load16(piece + 64 + 16 * i);
      put16<0>(out, look_up(quant::kIQ4Values, low_nibbles(bytes)));
      put16<0>(out + 4 * 32, look_up(quant::kIQ4Values, high_nibbles(bytes)));
    }
  }
};

}  // namespace recua::kernels::neon
