#pragma once
/// How AVX-512's products with packed weights go over rows and tokens; the formats fill in the
/// inner loops. Only files built with AVX-512 F, BW, DQ, VL and VNNI include this.
///
/// vpdpbusd adds four products of unsigned weights and signed activations to each 32-bit lane, so a
/// vector of 64 bytes is two groups (kernels/packed.h) side by side: 16 rows by 4 elements. Weights
/// with an offset stay unsigned, and a sum begins with what the offset takes off (ActivationBlock32
/// and ActivationBlock256).
///
/// Few tokens go straight over the packed bytes. The fewest take one group at a time, in vectors of
/// 32 bytes: one stream from memory is read at 28 GB/s, two only at 19, and there is time to spare.
/// More tokens go in tiles of 32 rows by 6 tokens over weights that were unpacked for them into the
/// first-level cache: 12 sums of a block, 12 over blocks, two vectors of weights and one of
/// activations fit the 32 registers.
///
/// A format F has
///   Block                    of the activations, kBlock elements long
///   kPieceBytes              bytes of a piece (eight blocks)
///   kChunk                   pieces that are unpacked at a time, at most: 8 to 16 KiB
///   Unpacked<kVectors>       kChunk pieces of that many times 16 rows, ready for tiles
///   unpack(w, n, unpacked, v)        n pieces of two groups become vector v of unpacked
///   tile(unpacked, x, n, ahead, sums)   adds n pieces times the blocks x[kTokens][n] on to sums,
///   and
///                                    takes steps ahead meanwhile
///   kFew                     tokens that dot() takes at most: as many as have room for their sums
///   kWideFrom                tokens from which dot() takes two groups at a time
///   dot<kTokens>(w, x, n, jump, sums)   sums [kTokens] of all n pieces of one group or two; what
///   comes
///                                    after these lies `jump` bytes behind their end
/// An output's f32 sum takes the same operations block after block in tile() and in dot().

#include <type_traits>

#include "kernels/activation.h"
#include "kernels/avx2/ahead.h"
#include "kernels/avx512/lanes.h"
#include "kernels/matmul.h"
#include "kernels/packed.h"

namespace recua::kernels::avx512 {

/// Rows of a vector.
constexpr std::size_t kVectorRows = 2 * kPackedRows;
/// Rows (in vectors) and tokens of a tile.
constexpr std::size_t kTileVectors = 2;
constexpr std::size_t kTileTokens = 6;
/// Tokens that share one unpacking.
constexpr std::size_t kTokenBlock = 16 * kTileTokens;

/// f32 sums on their way through memory: [token][row of the tile].
using SumRow = float[kTileVectors * kVectorRows];

/// The 16 rows from r on. Where the matrix ends with the first group of them, it also stands in for
/// the second, whose sums nobody stores.
RECUA_AVX512_INLINE TwoGroups two_groups(const MatmulArgs& args, std::size_t r) {
  const auto* const first =
      reinterpret_cast<const std::uint8_t*>(args.w + r / kPackedRows * args.w_stride);
  return {first, args.n_rows - r > kPackedRows ? first + args.w_stride : first};
}

/// Of the groups that a tile's vectors hold.
template <std::size_t kVectors>
using Ahead = avx2::Ahead<2 * kVectors>;

template <class F, std::size_t kVectors, std::size_t kTokens>
RECUA_AVX512_INLINE void tile(const typename F::template Unpacked<kVectors>& w,
                              const std::byte* const* x, std::size_t begin, std::size_t n,
                              Ahead<kVectors>& ahead, SumRow* sums) {
  const typename F::Block* blocks[kTokens];
  for (std::size_t t = 0; t < kTokens; ++t) {
    blocks[t] = reinterpret_cast<const typename F::Block*>(x[t]) + begin;
  }
  F::template tile<kVectors, kTokens>(w, blocks, n, ahead, sums);
}

/// Rows [r, r + 16 * kVectors) by the tokens [t0, t0 + n_tokens).
template <class F, std::size_t kVectors>
static void some_rows(const MatmulArgs& args, std::size_t r, std::size_t t0, std::size_t n_tokens) {
  alignas(64) SumRow sums[kTokenBlock];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(sums[t] + v * kVectorRows, _mm512_setzero_ps());
    }
  }
  typename F::template Unpacked<kVectors> unpacked;
  const std::byte* const* const x = args.x + t0;
  const std::size_t n_blocks = args.n_in / F::kBlock;
  // Even ones: few tiles over a short last chunk would not ask for all of what comes next.
  const std::size_t chunk = avx2::even_part(n_blocks, F::kChunk);
  for (std::size_t b = 0; b < n_blocks; b += chunk) {
    const std::size_t n = n_blocks - b < chunk ? n_blocks - b : chunk;
    for (std::size_t v = 0; v < kVectors; ++v) {
      F::unpack(two_groups(args, r + v * kVectorRows).from(b * F::kPieceBytes), n, unpacked, v);
    }
    Ahead<kVectors> ahead =
        avx2::behind<F, 2 * kVectors>(two_groups(args, r).a, args.w_stride, b, n_blocks, chunk);
    std::size_t t = 0;
    for (; n_tokens - t >= 6; t += 6) tile<F, kVectors, 6>(unpacked, x + t, b, n, ahead, sums + t);
    switch (n_tokens - t) {
      case 5:
        tile<F, kVectors, 5>(unpacked, x + t, b, n, ahead, sums + t);
        break;
      case 4:
        tile<F, kVectors, 4>(unpacked, x + t, b, n, ahead, sums + t);
        break;
      case 3:
        tile<F, kVectors, 3>(unpacked, x + t, b, n, ahead, sums + t);
        break;
      case 2:
        tile<F, kVectors, 2>(unpacked, x + t, b, n, ahead, sums + t);
        break;
      case 1:
        tile<F, kVectors, 1>(unpacked, x + t, b, n, ahead, sums + t);
        break;
      default:
        break;
    }
  }
  for (std::size_t t = 0; t < n_tokens; ++t) {
    float* const out = args.out[t0 + t] + args.out_offset + r;
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t at = v * kVectorRows;
      _mm512_mask_storeu_ps(out + at, first_lanes(args.n_rows - r - at),
                            _mm512_load_ps(sums[t] + at));
    }
  }
}

/// The first n rows.
RECUA_AVX512_INLINE void store_rows(float* out, __m512 sums, std::size_t n) {
  _mm512_mask_storeu_ps(out, first_lanes(n), sums);
}
RECUA_AVX512_INLINE void store_rows(float* out, __m256 sums, std::size_t n) {
  _mm256_mask_storeu_ps(out, static_cast<__mmask8>(first_lanes(n)), sums);
}

/// How far ahead of a piece that begins at byte `at` of `n_bytes` few tokens ask for memory.
RECUA_AVX512_INLINE std::size_t bytes_ahead(std::size_t at, std::size_t n_bytes, std::size_t jump) {
  return at + kAhead < n_bytes ? kAhead : kAhead + jump;
}

/// All rows by kTokens tokens, each group's bytes read once.
template <class F, std::size_t kTokens>
static void few_tokens(const MatmulArgs& args) {
  using Groups = std::conditional_t<(kTokens < F::kWideFrom), OneGroup, TwoGroups>;
  const typename F::Block* blocks[kTokens];
  for (std::size_t t = 0; t < kTokens; ++t) {
    blocks[t] = reinterpret_cast<const typename F::Block*>(args.x[t]);
  }
  for (std::size_t r = 0; r < args.n_rows; r += Groups::kRows) {
    const TwoGroups two = two_groups(args, r);
    typename Groups::Floats sums[kTokens];
    if constexpr (Groups::kRows == kPackedRows) {
      F::template dot<kTokens>(OneGroup(two.a), blocks, args.n_in / F::kBlock, 0, sums);
    } else {
      F::template dot<kTokens>(two, blocks, args.n_in / F::kBlock, args.w_stride, sums);
    }
    for (std::size_t t = 0; t < kTokens; ++t) {
      store_rows(args.out[t] + args.out_offset + r, sums[t], args.n_rows - r);
    }
  }
}

template <class F>
RECUA_AVX512_INLINE void multiply_packed(const MatmulArgs& args) {
  switch (args.n_tokens) {
    case 1:
      return few_tokens<F, 1>(args);
    case 2:
      return few_tokens<F, 2>(args);
    case 3:
      return few_tokens<F, 3>(args);
    case 4:
      return few_tokens<F, 4>(args);
    case 5:
      if constexpr (F::kFew >= 5) return few_tokens<F, 5>(args);
      break;
    case 6:
      if constexpr (F::kFew >= 6) return few_tokens<F, 6>(args);
      break;
    case 7:
      if constexpr (F::kFew >= 7) return few_tokens<F, 7>(args);
      break;
    case 8:
      if constexpr (F::kFew >= 8) return few_tokens<F, 8>(args);
      break;
    default:
      break;
  }
  for (std::size_t t = 0; t < args.n_tokens; t += kTokenBlock) {
    const std::size_t n = args.n_tokens - t < kTokenBlock ? args.n_tokens - t : kTokenBlock;
    std::size_t r = 0;
    for (; r + kVectorRows < args.n_rows; r += 2 * kVectorRows) some_rows<F, 2>(args, r, t, n);
    if (r < args.n_rows) some_rows<F, 1>(args, r, t, n);
  }
}

}  // namespace recua::kernels::avx512
