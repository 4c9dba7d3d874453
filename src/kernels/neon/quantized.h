#pragma once
/// Products with quantized weights, packed or as rows of the file. Only the files of neon/ that are
/// compiled for one of Arm's instruction sets include this.
///
/// Eight rows by all tokens of a block of them (kTokenBlock): a piece is unpacked to signed bytes
/// in the first-level cache (kernels/neon/unpack.h), meets tiles of 8, 4, 2 and 1 tokens, and its
/// sums are added to those of the pieces before. 8 tokens by 8 rows are 16 of 32 registers. Rows of
/// the file become pieces first (pack_piece()), which is repeated for every call; after it all is
/// the same, and so are the results.

#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "kernels/neon/products.h"
#include "kernels/neon/unpack_256.h"
#include "kernels/neon/unpack_32.h"
#include "kernels/packed.h"

namespace recua::kernels::neon {

/// Tokens that share one unpacking.
constexpr std::size_t kTokenBlock = 96;

/// sum + value * d, where value = s * factor.
RECUA_NEON_INLINE float32x4_t add_scaled(float32x4_t sum, int32x4_t s, float factor,
                                         float32x4_t d) {
  return vfmaq_f32(sum, vmulq_n_f32(vcvtq_f32_s32(s), factor), d);
}

/// The products of one unpacked block (number b of n_in / 32 or n_in / 256) with kTokens tokens, on
/// top of sums [kTokens][8].
template <Products kProducts, class Format, std::size_t kTokens>
struct Tile32 {
  RECUA_NEON_INLINE void add(const Unpacked32& w, const std::byte* const* x, std::size_t n_in,
                             std::size_t b, float (*sums)[kPackedRows]) {
    const std::int8_t* q[kTokens];
    RowSums s[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q8_values(x[t]) + 32 * b;
      s[t].low = s[t].high = vdupq_n_s32(0);
    }
    ByteProducts<kProducts>::template add<8>(w.q, q, s);
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const float d = q8_scales(x[t], n_in)[b];
      float32x4_t low = add_scaled(vld1q_f32(sums[t]), s[t].low, d, vld1q_f32(w.d));
      float32x4_t high = add_scaled(vld1q_f32(sums[t] + 4), s[t].high, d, vld1q_f32(w.d + 4));
      if constexpr (Format::kHasMin) {
        const float sum = q8x32_sums(x[t], n_in)[b];
        low = vfmaq_n_f32(low, vld1q_f32(w.m), sum);
        high = vfmaq_n_f32(high, vld1q_f32(w.m + 4), sum);
      }
      vst1q_f32(sums[t], low);
      vst1q_f32(sums[t] + 4, high);
    }
  }
};

template <Products kProducts, class Format, std::size_t kTokens>
struct Tile256 {
  // The activations' sum of group g of block b.
  RECUA_NEON_INLINE std::int16_t sum_of(const std::byte* x, std::size_t n_in, std::size_t b,
                                        std::size_t g) {
    if constexpr (Format::kGroup == 32) return q8x256_sums32(x, n_in)[8 * b + g];
    return q8x256_sums(x, n_in)[16 * b + sum_index(g)];
  }

  RECUA_NEON_INLINE void add(const Unpacked256<Format::kGroups>& w, const std::byte* const* x,
                             std::size_t n_in, std::size_t b, float (*sums)[kPackedRows]) {
    RowSums all[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) all[t].low = all[t].high = vdupq_n_s32(0);
    for (std::size_t g = 0; g < Format::kGroups; ++g) {
      const std::int8_t* q[kTokens];
      RowSums s[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        q[t] = q8_values(x[t]) + 256 * b + Format::kGroup * g;
        s[t].low = s[t].high = vdupq_n_s32(0);
      }
      ByteProducts<kProducts>::template add<Format::kGroup / 4>(w.q + 8 * Format::kGroup * g, q, s);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        all[t].low = vmlaq_s32(all[t].low, s[t].low, vld1q_s32(w.scale[g]));
        all[t].high = vmlaq_s32(all[t].high, s[t].high, vld1q_s32(w.scale[g] + 4));
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const float d = q8_scales(x[t], n_in)[b];
      float32x4_t low = add_scaled(vld1q_f32(sums[t]), all[t].low, d, vld1q_f32(w.d));
      float32x4_t high = add_scaled(vld1q_f32(sums[t] + 4), all[t].high, d, vld1q_f32(w.d + 4));
      if constexpr (Format::kHasMin) {
        int32x4_t m_low = vdupq_n_s32(0);
        int32x4_t m_high = vdupq_n_s32(0);
        for (std::size_t g = 0; g < Format::kGroups; ++g) {
          const int16x8_t min = vld1q_s16(w.min[g]);
          const std::int16_t sum = sum_of(x[t], n_in, b, g);
          m_low = vmlal_n_s16(m_low, vget_low_s16(min), sum);
          m_high = vmlal_high_n_s16(m_high, min, sum);
        }
        low = add_scaled(low, vnegq_s32(m_low), d, vld1q_f32(w.dmin));
        high = add_scaled(high, vnegq_s32(m_high), d, vld1q_f32(w.dmin + 4));
      }
      vst1q_f32(sums[t], low);
      vst1q_f32(sums[t] + 4, high);
    }
  }
};

template <Products kProducts, quant::DataType kType>
struct Quantized {
  using F = Format<kType>;

  template <std::size_t kTokens>
  [[gnu::noinline]] static void tile(const auto& unpacked, const std::byte* const* x,
                                     std::size_t n_in, std::size_t b, float (*sums)[kPackedRows]) {
    if constexpr (F::kBlock == 32) {
      Tile32<kProducts, F, kTokens>::add(unpacked, x, n_in, b, sums);
    } else {
      Tile256<kProducts, F, kTokens>::add(unpacked, x, n_in, b, sums);
    }
  }

  RECUA_NEON_INLINE auto unpack(const std::uint8_t* piece) {
    if constexpr (F::kBlock == 32) {
      Unpacked32 unpacked;
      F::unpack(piece, unpacked);
      return unpacked;
    } else {
      Unpacked256<F::kGroups> unpacked;
      F::unpack(piece, unpacked);
      return unpacked;
    }
  }

  // piece_at(r, b): block b of the eight rows from r on.
  template <class PieceAt>
  RECUA_NEON_INLINE void multiply(const MatmulArgs& args, PieceAt piece_at) {
    for (std::size_t t0 = 0; t0 < args.n_tokens; t0 += kTokenBlock) {
      const std::size_t n = smaller(kTokenBlock, args.n_tokens - t0);
      const std::byte* const* const x = args.x + t0;
      for (std::size_t r = 0; r < args.n_rows; r += kPackedRows) {
        alignas(16) float sums[kTokenBlock][kPackedRows];
        __builtin_memset(sums, 0, n * sizeof(sums[0]));
        for (std::size_t b = 0; b < args.n_in / F::kBlock; ++b) {
          const auto unpacked = unpack(piece_at(r, b));
          std::size_t t = 0;
          for (; t + 8 <= n; t += 8) tile<8>(unpacked, x + t, args.n_in, b, sums + t);
          for (; t + 4 <= n; t += 4) tile<4>(unpacked, x + t, args.n_in, b, sums + t);
          for (; t + 2 <= n; t += 2) tile<2>(unpacked, x + t, args.n_in, b, sums + t);
          if (t < n) tile<1>(unpacked, x + t, args.n_in, b, sums + t);
        }
        const std::size_t n_rows = smaller(kPackedRows, args.n_rows - r);
        for (std::size_t t = 0; t < n; ++t) {
          __builtin_memcpy(args.out[t0 + t] + args.out_offset + r, sums[t], n_rows * sizeof(float));
        }
      }
    }
  }
};

template <Products kProducts, quant::DataType kType>
void packed_matmul(const MatmulArgs& args) {
  using Q = Quantized<kProducts, kType>;
  Q::multiply(args, [&](std::size_t r, std::size_t b) __attribute__((always_inline)) {
    const std::byte* const group = args.w + r / kPackedRows * args.w_stride;
    return reinterpret_cast<const std::uint8_t*>(group + b * Q::F::kPieceBytes);
  });
}

template <Products kProducts, quant::DataType kType>
void matmul(const MatmulArgs& args) {
  using Q = Quantized<kProducts, kType>;
  alignas(16) std::byte piece[Q::F::kPieceBytes];
  Q::multiply(args, [&](std::size_t r, std::size_t b) __attribute__((always_inline)) {
    constexpr std::size_t kBlockBytes = Q::F::kPieceBytes / kPackedRows;
    pack_piece(kType, args.w + r * args.w_stride + b * kBlockBytes, args.w_stride,
               smaller(kPackedRows, args.n_rows - r), piece);
    return reinterpret_cast<const std::uint8_t*>(piece);
  });
}

}  // namespace recua::kernels::neon

/// In a file that is compiled for one of the instruction sets: what kernels/matmul.h declares.
#define RECUA_NEON_TYPE(kProducts, kType)                                     \
  template void matmul<kProducts, quant::DataType::kType>(const MatmulArgs&); \
  template void packed_matmul<kProducts, quant::DataType::kType>(const MatmulArgs&)
#define RECUA_NEON_TYPES(kProducts)    \
  RECUA_NEON_TYPE(kProducts, kQ4_0);   \
  RECUA_NEON_TYPE(kProducts, kQ4_1);   \
  RECUA_NEON_TYPE(kProducts, kQ5_0);   \
  RECUA_NEON_TYPE(kProducts, kQ5_1);   \
  RECUA_NEON_TYPE(kProducts, kQ8_0);   \
  RECUA_NEON_TYPE(kProducts, kIQ4_NL); \
  RECUA_NEON_TYPE(kProducts, kMXFP4);  \
  RECUA_NEON_TYPE(kProducts, kQ2_K);   \
  RECUA_NEON_TYPE(kProducts, kQ3_K);   \
  RECUA_NEON_TYPE(kProducts, kQ4_K);   \
  RECUA_NEON_TYPE(kProducts, kQ5_K);   \
  RECUA_NEON_TYPE(kProducts, kQ6_K);   \
  RECUA_NEON_TYPE(kProducts, kIQ4_XS)
