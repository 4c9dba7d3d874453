#pragma once
/// How the blocks of quantized tensors lie in memory, byte by byte (little endian, no padding).
///
/// A row of n elements is n / kBlock32 or n / kBlock256 of these, one after the other. The structs
/// have an alignment of at most 2; GGUF aligns tensors to at least 8, so a kernel may cast a
/// tensor's bytes to them. F16 fields hold bit patterns (quant/half.h).
///
/// "Element" below counts within the block. Source of the layouts: the GGUF files in use; each is
/// held by the vectors in tests/golden/random.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "quant/data_type.h"

namespace recua::quant {

inline constexpr std::size_t kBlock32 = 32;
inline constexpr std::size_t kBlock256 = 256;

/// value[i] = d * q[i], q in [-128, 127].
struct BlockQ8_0 {
  std::uint16_t d;                // bytes 0..1: F16 scale
  std::array<std::int8_t, 32> q;  // bytes 2..33
};

/// value[i] = d * (q[i] - 8), q in [0, 15].
struct BlockQ4_0 {
  std::uint16_t d;                  // bytes 0..1: F16 scale
  std::array<std::uint8_t, 16> qs;  // bytes 2..17: low nibbles are elements 0..15, high 16..31
};

/// value[i] = d * q[i] + m, q in [0, 15].
struct BlockQ4_1 {
  std::uint16_t d;                  // bytes 0..1: F16 scale
  std::uint16_t m;                  // bytes 2..3: F16 offset, usually the minimum
  std::array<std::uint8_t, 16> qs;  // bytes 4..19: as in Q4_0
};

/// value[i] = d * (q[i] - 16), q in [0, 31].
struct BlockQ5_0 {
  std::uint16_t d;                  // bytes 0..1: F16 scale
  std::array<std::uint8_t, 4> qh;   // bytes 2..5: bit i of this u32 is bit 4 of element i
  std::array<std::uint8_t, 16> qs;  // bytes 6..21: bits 0..3, as in Q4_0
};

/// value[i] = d * q[i] + m, q in [0, 31].
struct BlockQ5_1 {
  std::uint16_t d;                  // bytes 0..1: F16 scale
  std::uint16_t m;                  // bytes 2..3: F16 offset
  std::array<std::uint8_t, 4> qh;   // bytes 4..7: as in Q5_0
  std::array<std::uint8_t, 16> qs;  // bytes 8..23: as in Q4_0
};

/// 16 groups of 16 elements; value = d * scale[g] * q - dmin * min[g], q in [0, 3].
struct BlockQ2_K {
  std::array<std::uint8_t, 16>
      scales;                       // bytes 0..15: scale[g] in the low nibble, min[g] in the high
  std::array<std::uint8_t, 64> qs;  // bytes 16..79: element 128 h + 32 j + l is bits 2j, 2j+1 of
                                    //   byte 32 h + l (h < 2, j < 4, l < 32)
  std::uint16_t d;                  // bytes 80..81: F16
  std::uint16_t dmin;               // bytes 82..83: F16
};

/// 16 groups of 16 elements; value = d * (scale[g] - 32) * (q - 4), q in [0, 7], scale in [0, 63].
struct BlockQ3_K {
  std::array<std::uint8_t, 32> hmask;   // bytes 0..31: bit 2 of q: bit 4h + j of byte l
  std::array<std::uint8_t, 64> qs;      // bytes 32..95: bits 0..1 of q, as in Q2_K
  std::array<std::uint8_t, 12> scales;  // bytes 96..107: see scale_q3_k()
  std::uint16_t d;                      // bytes 108..109: F16
};

/// 8 groups of 32 elements; value = d * scale[g] * q - dmin * min[g], q in [0, 15].
struct BlockQ4_K {
  std::uint16_t d;                      // bytes 0..1: F16
  std::uint16_t dmin;                   // bytes 2..3: F16
  std::array<std::uint8_t, 12> scales;  // bytes 4..15: see scale_min_k4()
  std::array<std::uint8_t, 128> qs;     // bytes 16..143: element 64 c + l is the low nibble of byte
                                        //   32 c + l, element 64 c + 32 + l its high one (c < 4)
};

/// As Q4_K with q in [0, 31].
struct BlockQ5_K {
  std::uint16_t d;                      // bytes 0..1: F16
  std::uint16_t dmin;                   // bytes 2..3: F16
  std::array<std::uint8_t, 12> scales;  // bytes 4..15: see scale_min_k4()
  std::array<std::uint8_t, 32> qh;   // bytes 16..47: bit g of byte l is bit 4 of element 32 g + l
  std::array<std::uint8_t, 128> qs;  // bytes 48..175: bits 0..3, as in Q4_K
};

/// 16 groups of 16 elements; value = d * scale[g] * (q - 32), q in [0, 63].
struct BlockQ6_K {
  std::array<std::uint8_t, 128> ql;  // bytes 0..127: bits 0..3 of q: of byte 64 h + l (l < 64), the
                                     //   low nibble is element 128 h + l, the high 128 h + 64 + l
  std::array<std::uint8_t, 64> qh;   // bytes 128..191: bits 4..5 of q, as qs of Q2_K
  std::array<std::int8_t, 16> scales;  // bytes 192..207
  std::uint16_t d;                     // bytes 208..209: F16
};

/// What the indices of IQ4_NL and IQ4_XS stand for: steps that grow with the distance from 0.
/// (Plain arrays, since files of an instruction set may not use inline functions of std::array.)
inline constexpr std::int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

/// value[i] = d * kIQ4Values[q[i]], q in [0, 15].
struct BlockIQ4_NL {
  std::uint16_t d;                  // bytes 0..1: F16 scale
  std::array<std::uint8_t, 16> qs;  // bytes 2..17: as in Q4_0
};

/// 8 groups of 32 elements; value = d * (scale[g] - 32) * kIQ4Values[q], scale in [0, 63].
struct BlockIQ4_XS {
  std::uint16_t d;                     // bytes 0..1: F16
  std::uint16_t scales_high;           // bytes 2..3: see scale_iq4_xs()
  std::array<std::uint8_t, 4> scales;  // bytes 4..7
  std::array<std::uint8_t, 128> qs;    // bytes 8..135: bytes 16 g .. 16 g + 15 as in Q4_0
};

/// Twice the values of the 4-bit floats of MXFP4 (sign, two bits of exponent, one of mantissa).
inline constexpr std::int8_t kFp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                               0, -1, -2, -3, -4, -6, -8, -12};

/// value[i] = 2^(e - 128) * kFp4Values[q[i]], q in [0, 15].
struct BlockMXFP4 {
  std::uint8_t e;                   // byte 0: exponent, see half_of_e8m0()
  std::array<std::uint8_t, 16> qs;  // bytes 1..16: as in Q4_0
};

static_assert(sizeof(BlockQ8_0) == traits(DataType::kQ8_0).block_bytes);
static_assert(sizeof(BlockQ4_0) == traits(DataType::kQ4_0).block_bytes);
static_assert(sizeof(BlockQ4_1) == traits(DataType::kQ4_1).block_bytes);
static_assert(sizeof(BlockQ5_0) == traits(DataType::kQ5_0).block_bytes);
static_assert(sizeof(BlockQ5_1) == traits(DataType::kQ5_1).block_bytes);
static_assert(sizeof(BlockQ2_K) == traits(DataType::kQ2_K).block_bytes);
static_assert(sizeof(BlockQ3_K) == traits(DataType::kQ3_K).block_bytes);
static_assert(sizeof(BlockQ4_K) == traits(DataType::kQ4_K).block_bytes);
static_assert(sizeof(BlockQ5_K) == traits(DataType::kQ5_K).block_bytes);
static_assert(sizeof(BlockQ6_K) == traits(DataType::kQ6_K).block_bytes);
static_assert(sizeof(BlockIQ4_NL) == traits(DataType::kIQ4_NL).block_bytes);
static_assert(sizeof(BlockIQ4_XS) == traits(DataType::kIQ4_XS).block_bytes);
static_assert(sizeof(BlockMXFP4) == traits(DataType::kMXFP4).block_bytes);

struct ScaleMin {
  std::uint8_t scale = 0;  // [0, 63]
  std::uint8_t min = 0;    // [0, 63]
};

/// The 6-bit scale and min of group g (0..7) of a Q4_K or Q5_K block. Groups 0..3 lie in the low
/// six bits of bytes g (scale) and g + 4 (min); groups 4..7 have their low four bits in byte g + 4
/// (scale in its low nibble, min in its high one) and their upper two on top of bytes g - 4 and g.
constexpr ScaleMin scale_min_k4(const std::array<std::uint8_t, 12>& s, std::size_t g) {
  if (g < 4) {
    return {static_cast<std::uint8_t>(s[g] & 63), static_cast<std::uint8_t>(s[g + 4] & 63)};
  }
  const int low = s[g + 4];
  return {static_cast<std::uint8_t>((low & 15) | ((s[g - 4] >> 6) << 4)),
          static_cast<std::uint8_t>((low >> 4) | ((s[g] >> 6) << 4))};
}

/// Puts a scale and min into place; the bytes must have been zero for group g.
constexpr void set_scale_min_k4(std::array<std::uint8_t, 12>& s, std::size_t g, ScaleMin value) {
  const auto put = [&s](std::size_t i, int bits) { s[i] = static_cast<std::uint8_t>(s[i] | bits); };
  if (g < 4) {
    put(g, value.scale);
    put(g + 4, value.min);
    return;
  }
  put(g + 4, (value.scale & 15) | ((value.min & 15) << 4));
  put(g - 4, (value.scale >> 4) << 6);
  put(g, (value.min >> 4) << 6);
}

/// The 6-bit scale (0..63; 32 means 0) of group g (0..15) of a Q3_K block. Its low four bits are a
/// nibble of bytes 0..7 (low for g < 8), its upper two are bits 2 (g / 4) and up of byte 8 + g % 4.
constexpr int scale_q3_k(const std::array<std::uint8_t, 12>& s, std::size_t g) {
  const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
  const int high = (s[8 + g % 4] >> (2 * (g / 4))) & 3;
  return low | (high << 4);
}

/// Puts a scale into place; the bytes must have been zero for group g.
constexpr void set_scale_q3_k(std::array<std::uint8_t, 12>& s, std::size_t g, int scale) {
  const auto put = [&s](std::size_t i, int bits) { s[i] = static_cast<std::uint8_t>(s[i] | bits); };
  put(g % 8, (scale & 15) << (g < 8 ? 0 : 4));
  put(8 + g % 4, (scale >> 4) << (2 * (g / 4)));
}

/// The 6-bit scale (0..63; 32 means 0) of group g (0..7) of an IQ4_XS block. Its low four bits are
/// a nibble of byte g / 2 (low for even g), its upper two are bits 2 g and 2 g + 1 of scales_high.
constexpr int scale_iq4_xs(const BlockIQ4_XS& block, std::size_t g) {
  return ((block.scales[g / 2] >> (4 * (g % 2))) & 15) |
         (((block.scales_high >> (2 * g)) & 3) << 4);
}

/// Puts a scale into place; the bits must have been zero for group g.
constexpr void set_scale_iq4_xs(BlockIQ4_XS& block, std::size_t g, int scale) {
  block.scales[g / 2] =
      static_cast<std::uint8_t>(block.scales[g / 2] | (scale & 15) << (4 * (g % 2)));
  block.scales_high = static_cast<std::uint16_t>(block.scales_high | (scale >> 4) << (2 * g));
}

/// 2^(e - 128): half of what the exponent of an MXFP4 block means, since kFp4Values are doubled.
/// The two smallest are denormal floats; 255, a NaN in the OCP's text, is taken as 2^127.
constexpr float half_of_e8m0(std::uint8_t e) {
  return std::bit_cast<float>(e < 2 ? std::uint32_t{0x00200000} << e
                                    : (std::uint32_t{e} - 1U) << 23U);
}

}  // namespace recua::quant
