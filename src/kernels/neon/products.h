#pragma once
/// Sums of products of bytes, the one thing in which the three instruction sets of Arm differ. Only
/// files of neon/ include this; which of the three there are depends on how the file is compiled.
///
/// ByteProducts<kProducts>::add<kVectors>(w, x, sums): to sums, kTokens of them, products of eight
/// rows with kTokens tokens over 4 * kVectors elements. w has, per four elements, 32 bytes: those
/// four of row 0, of row 1 ... of row 7 (as kernels/packed.h has them); x[t] is where the token's
/// elements begin. Weights are in [-128, 127] and activations in [-127, 127], so that two products
/// fit 16 bits. All is exact, so the three give the same bits.

#include "kernels/matmul.h"
#include "kernels/neon/common.h"

namespace recua::kernels::neon {

/// Of rows 0 to 3 and of rows 4 to 7.
struct RowSums {
  int32x4_t low;
  int32x4_t high;
};

/// Four neighbouring activations for each of four rows.
RECUA_NEON_INLINE int8x16_t broadcast4(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

template <Products kProducts>
struct ByteProducts;

/// Dot(sum, w, x): sum with the products of four elements of four rows. A token at a time meets
/// each vector of weights.
template <class Dot, std::size_t kVectors, std::size_t kTokens>
RECUA_NEON_INLINE void add_by_dots(const std::int8_t* w, const std::int8_t* const (&x)[kTokens],
                                   RowSums (&sums)[kTokens], Dot dot) {
  RECUA_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) {
    const int8x16_t low = vld1q_s8(w + 32 * v);
    const int8x16_t high = vld1q_s8(w + 32 * v + 16);
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const int8x16_t value = broadcast4(x[t] + 4 * v);
      sums[t].low = dot(sums[t].low, low, value);
      sums[t].high = dot(sums[t].high, high, value);
    }
  }
}

/// Armv8.0: products of 16 bits, of which neighbours are added in 16 and then in 32 bits.
template <>
struct ByteProducts<Products::kWiden> {
  template <std::size_t kVectors, std::size_t kTokens>
  RECUA_NEON_INLINE void add(const std::int8_t* w, const std::int8_t* const (&x)[kTokens],
                             RowSums (&sums)[kTokens]) {
    const auto dot = [](int32x4_t sum, int8x16_t a, int8x16_t b) __attribute__((always_inline)) {
      const int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(b));
      const int16x8_t second = vmull_high_s8(a, b);
      return vpadalq_s16(sum, vpaddq_s16(first, second));
    };
    add_by_dots<decltype(dot), kVectors>(w, x, sums, dot);
  }
};

#if defined(__ARM_FEATURE_DOTPROD)
/// SDOT: four products of each of four rows at once.
template <>
struct ByteProducts<Products::kDot> {
  template <std::size_t kVectors, std::size_t kTokens>
  RECUA_NEON_INLINE void add(const std::int8_t* w, const std::int8_t* const (&x)[kTokens],
                             RowSums (&sums)[kTokens]) {
    const auto dot = [](int32x4_t sum, int8x16_t a, int8x16_t b)
                         __attribute__((always_inline)) { return vdotq_s32(sum, a, b); };
    add_by_dots<decltype(dot), kVectors>(w, x, sums, dot);
  }
};
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
/// SMMLA: eight elements of two rows by those of two tokens. One token alone would waste half of
/// it, and goes by SDOT.
template <>
struct ByteProducts<Products::kMatrix> {
  template <std::size_t kVectors, std::size_t kTokens>
  RECUA_NEON_INLINE void add(const std::int8_t* w, const std::int8_t* const (&x)[kTokens],
                             RowSums (&sums)[kTokens]) {
    if constexpr (kTokens == 1) {
      ByteProducts<Products::kDot>::add<kVectors>(w, x, sums);
    } else {
      static_assert(kTokens % 2 == 0 && kVectors % 2 == 0);
      // Row i of the matrices m is rows 2 i and 2 i + 1 of the weights by tokens 2 t and 2 t + 1.
      int32x4_t m[4][kTokens / 2];
      RECUA_UNROLL
      for (std::size_t i = 0; i < 4; ++i) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens / 2; ++t) m[i][t] = vdupq_n_s32(0);
      }
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; v += 2) {
        int8x16_t rows[4];
        RECUA_UNROLL
        for (std::size_t half = 0; half < 2; ++half) {
          const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(w + 32 * v + 16 * half));
          const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(w + 32 * v + 32 + 16 * half));
          rows[2 * half] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
          rows[2 * half + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        }
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens / 2; ++t) {
          const int8x16_t tokens =
              vcombine_s8(vld1_s8(x[2 * t] + 4 * v), vld1_s8(x[2 * t + 1] + 4 * v));
          RECUA_UNROLL
          for (std::size_t i = 0; i < 4; ++i) m[i][t] = vmmlaq_s32(m[i][t], rows[i], tokens);
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens / 2; ++t) {
        RowSums& even = sums[2 * t];
        RowSums& odd = sums[2 * t + 1];
        even.low = vaddq_s32(even.low, vuzp1q_s32(m[0][t], m[1][t]));
        even.high = vaddq_s32(even.high, vuzp1q_s32(m[2][t], m[3][t]));
        odd.low = vaddq_s32(odd.low, vuzp2q_s32(m[0][t], m[1][t]));
        odd.high = vaddq_s32(odd.high, vuzp2q_s32(m[2][t], m[3][t]));
      }
    }
  }
};
#endif

}  // namespace recua::kernels::neon
