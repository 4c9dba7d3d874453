#pragma once
/// Packed formats with blocks of 32 (kernels/neon/unpack.h). Only files of neon/ include this.

#include "kernels/neon/unpack.h"
#include "quant/blocks.h"
#include "quant/data_type.h"

namespace recua::kernels::neon {

/// Format<type>: see kernels/neon/unpack.h.
template <quant::DataType kType>
struct Format;

/// Nibbles at kAt; of 32 bytes the low ones are four elements of eight rows, the high ones those 16
/// elements later. finish(nibbles, v) makes what is put of a vector v's sixteen.
template <std::size_t kAt, class Finish>
RECUA_NEON_INLINE void unpack_nibbles(const std::uint8_t* piece, Unpacked32& to, Finish finish) {
  RECUA_UNROLL
  for (std::size_t v = 0; v < 4; ++v) {
    RECUA_UNROLL
    for (std::size_t half = 0; half < 2; ++half) {
      const uint8x16_t bytes = load16(piece + kAt + 32 * v + 16 * half);
      finish(low_nibbles(bytes), v, half, to.q + 32 * v + 16 * half);
      finish(high_nibbles(bytes), 4 + v, half, to.q + 32 * (4 + v) + 16 * half);
    }
  }
}

template <>
struct Format<quant::DataType::kQ4_0> {
  static constexpr std::size_t kPieceBytes = 144;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    unpack_nibbles<16>(piece, to,
                       [](uint8x16_t q, std::size_t, std::size_t, std::int8_t* out)
                           __attribute__((always_inline)) { put16<8>(out, q); });
  }
};

template <>
struct Format<quant::DataType::kQ4_1> {
  static constexpr std::size_t kPieceBytes = 160;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = true;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    put8_f16(piece + 16, to.m);
    unpack_nibbles<32>(piece, to,
                       [](uint8x16_t q, std::size_t, std::size_t, std::int8_t* out)
                           __attribute__((always_inline)) { put16<0>(out, q); });
  }
};

/// The fifth bits are in the 32 bytes in front of the nibbles: bit v of each byte is for vector v.
template <std::size_t kAt, int kOffset>
RECUA_NEON_INLINE void unpack_five_bits(const std::uint8_t* piece, Unpacked32& to) {
  const uint8x16_t fifth[2] = {load16(piece + kAt - 32), load16(piece + kAt - 16)};
  unpack_nibbles<kAt>(piece, to,
                      [&](uint8x16_t q, std::size_t v, std::size_t half, std::int8_t* out)
                          __attribute__((always_inline)) {
                            put16<kOffset>(out, vorrq_u8(q, one_bit<4>(fifth[half], v)));
                          });
}

template <>
struct Format<quant::DataType::kQ5_0> {
  static constexpr std::size_t kPieceBytes = 176;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    unpack_five_bits<48, 16>(piece, to);
  }
};

template <>
struct Format<quant::DataType::kQ5_1> {
  static constexpr std::size_t kPieceBytes = 192;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = true;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    put8_f16(piece + 16, to.m);
    unpack_five_bits<64, 0>(piece, to);
  }
};

template <>
struct Format<quant::DataType::kQ8_0> {
  static constexpr std::size_t kPieceBytes = 272;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    RECUA_UNROLL
    for (std::size_t i = 0; i < 16; ++i) {
      put16<0>(to.q + 16 * i, load16(piece + 16 + 16 * i));
    }
  }
};

template <std::size_t kAt>
RECUA_NEON_INLINE void unpack_table(const std::uint8_t* piece, const std::int8_t* table,
                                    Unpacked32& to) {
  unpack_nibbles<kAt>(piece, to,
                      [&](uint8x16_t q, std::size_t, std::size_t, std::int8_t* out)
                          __attribute__((always_inline)) { put16<0>(out, look_up(table, q)); });
}

template <>
struct Format<quant::DataType::kIQ4_NL> {
  static constexpr std::size_t kPieceBytes = 144;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    put8_f16(piece, to.d);
    unpack_table<16>(piece, quant::kIQ4Values, to);
  }
};

/// 2^(e - 128) of four exponents, as quant::half_of_e8m0() has it.
RECUA_NEON_INLINE float32x4_t half_of_e8m0(uint32x4_t e) {
  const uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
  const uint32x4_t denormal = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
  return vreinterpretq_f32_u32(vbslq_u32(vcgtq_u32(e, vdupq_n_u32(1)), normal, denormal));
}

template <>
struct Format<quant::DataType::kMXFP4> {
  static constexpr std::size_t kPieceBytes = 136;
  static constexpr std::size_t kBlock = 32;
  static constexpr bool kHasMin = false;
  RECUA_NEON_INLINE void unpack(const std::uint8_t* piece, Unpacked32& to) {
    const uint16x8_t e = vmovl_u8(load8(piece));
    vst1q_f32(to.d, half_of_e8m0(vmovl_u16(vget_low_u16(e))));
    vst1q_f32(to.d + 4, half_of_e8m0(vmovl_high_u16(e)));
    unpack_table<8>(piece, quant::kFp4Values, to);
  }
};

}  // namespace recua::kernels::neon
