#pragma once
/// How products with packed weights go over rows and tokens; the formats fill in the inner loops.
/// Only files built with -mavx2 -mfma -mf16c include this.
///
/// Few tokens go straight over the packed bytes, group by group. More go in tiles of 16 rows by 3
/// tokens over weights that were unpacked for them into the first-level cache: 6 + 6 sums, two
/// vectors of weights and one of activations fit the 16 registers, and each of the three meets two
/// or three others. Per 16 rows and kChunk blocks the unpacking is paid once for kTokenBlock tokens
/// (1 to 2 % of the time at 96).
///
/// A format F has
///   kPieceBytes              bytes of a piece (eight blocks), kBlock elements long
///   kChunk                   pieces that are unpacked at a time, at most: about 8 KiB
///   Unpacked<kGroups>        kChunk pieces of that many groups, ready for tiles
///   unpack(w, n, unpacked, g)           n pieces at w become group g of unpacked
///   tile(unpacked, x, n_in, b, n, sums) adds the n pieces from block b on to sums [kTokens][16]
///   kFew                     tokens that dot() takes at most: as many as have room for their sums
///   dot<kTokens>(w, x, n_in, sums)      sums [kTokens][8] of one group
/// An output's f32 sum takes the same operations block after block in tile() and in dot().

#include "kernels/activation.h"
#include "kernels/avx2/ahead.h"
#include "kernels/avx2/common.h"
#include "kernels/matmul.h"
#include "kernels/packed.h"

namespace recua::kernels::avx2 {

/// g++ 12 rewrites sums of products into trees that do not fit the registers, and spills; a sum
/// that passes through here after each step keeps its order. Costs no instruction.
RECUA_AVX2_INLINE void pin(__m256i& sum) { asm("" : "+x"(sum)); }

RECUA_AVX2_INLINE __m256i broadcast32(const void* p) {
  int value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm256_set1_epi32(value);
}

RECUA_AVX2_INLINE __m256 load8_f16(const std::uint8_t* p) { return _mm256_cvtph_ps(load128(p)); }

/// Tokens that share one unpacking. Their activations (2 KiB of k each) stay in the second-level
/// cache; from 24 to 510 nothing else was measured.
constexpr std::size_t kTokenBlock = 96;
constexpr std::size_t kSumRow = 2 * kPackedRows;

/// The first n of 8 lanes.
RECUA_AVX2_INLINE void store_rows(float* out, __m256 sums, std::size_t n) {
  if (n >= kPackedRows) {
    _mm256_storeu_ps(out, sums);
  } else {
    _mm256_maskstore_ps(out, first_lanes(n), sums);
  }
}

/// Rows [r, r + 8 * kGroups) by the tokens [t0, t0 + n_tokens).
template <class F, std::size_t kGroups>
static void some_rows(const MatmulArgs& args, std::size_t r, std::size_t t0, std::size_t n_tokens) {
  alignas(64) float sums[kTokenBlock][kSumRow];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t i = 0; i < kSumRow; i += 8) _mm256_store_ps(sums[t] + i, _mm256_setzero_ps());
  }
  typename F::template Unpacked<kGroups> unpacked;
  const auto* const w =
      reinterpret_cast<const std::uint8_t*>(args.w + r / kPackedRows * args.w_stride);
  const std::byte* const* const x = args.x + t0;
  const std::size_t n_blocks = args.n_in / F::kBlock;
  const std::size_t chunk = even_part(n_blocks, F::kChunk);
  for (std::size_t b = 0; b < n_blocks; b += chunk) {
    const std::size_t n = n_blocks - b < chunk ? n_blocks - b : chunk;
    for (std::size_t g = 0; g < kGroups; ++g) {
      F::unpack(w + g * args.w_stride + b * F::kPieceBytes, n, unpacked, g);
    }
    Ahead<kGroups> ahead = behind<F, kGroups>(w, args.w_stride, b, n_blocks, chunk);
    std::size_t t = 0;
    for (; n_tokens - t >= 3 && n_tokens - t != 4; t += 3) {
      ahead.template step<8>();
      F::template tile<kGroups, 3>(unpacked, x + t, args.n_in, b, n, sums[t]);
    }
    for (; n_tokens - t >= 2; t += 2) {
      ahead.template step<8>();
      F::template tile<kGroups, 2>(unpacked, x + t, args.n_in, b, n, sums[t]);
    }
    if (t < n_tokens) F::template tile<kGroups, 1>(unpacked, x + t, args.n_in, b, n, sums[t]);
    while (ahead.at < ahead.n_bytes)
      ahead.template step<8>();  // Few tiles have not asked for all of it.
  }
  for (std::size_t t = 0; t < n_tokens; ++t) {
    float* const out = args.out[t0 + t] + args.out_offset + r;
    for (std::size_t g = 0; g < kGroups; ++g) {
      store_rows(out + g * kPackedRows, _mm256_load_ps(sums[t] + g * kPackedRows),
                 args.n_rows - r - g * kPackedRows);
    }
  }
}

/// All rows by kTokens tokens, each group's bytes read once.
template <class F, std::size_t kTokens>
static void few_tokens(const MatmulArgs& args) {
  for (std::size_t r = 0; r < args.n_rows; r += kPackedRows) {
    alignas(32) float sums[kTokens][kPackedRows];
    const std::byte* const group = args.w + r / kPackedRows * args.w_stride;
    F::template dot<kTokens>(reinterpret_cast<const std::uint8_t*>(group), args.x, args.n_in,
                             sums[0]);
    for (std::size_t t = 0; t < kTokens; ++t) {
      store_rows(args.out[t] + args.out_offset + r, _mm256_load_ps(sums[t]), args.n_rows - r);
    }
  }
}

template <class F>
RECUA_AVX2_INLINE void multiply_packed(const MatmulArgs& args) {
  if (args.n_tokens == 1) return few_tokens<F, 1>(args);
  if (args.n_tokens == 2) return few_tokens<F, 2>(args);
  if constexpr (F::kFew >= 4) {
    if (args.n_tokens == 3) return few_tokens<F, 3>(args);
    if (args.n_tokens == 4) return few_tokens<F, 4>(args);
  }
  for (std::size_t t = 0; t < args.n_tokens; t += kTokenBlock) {
    const std::size_t n = args.n_tokens - t < kTokenBlock ? args.n_tokens - t : kTokenBlock;
    std::size_t r = 0;
    for (; r + kPackedRows < args.n_rows; r += 2 * kPackedRows) some_rows<F, 2>(args, r, t, n);
    if (r < args.n_rows) some_rows<F, 1>(args, r, t, n);
  }
}

}  // namespace recua::kernels::avx2
