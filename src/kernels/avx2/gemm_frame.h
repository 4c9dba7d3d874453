#pragma once
/// What the F32 products of AVX2 and AVX-512 have in common: blocks of a and b are copied into
/// panels, as many rows (columns for b) side by side for each p as a tile has, so that a tile reads
/// both straight through. Panels at the edge are filled up with zeros and go through the same tile,
/// so where an output lies in c does not show in it.

#include "kernels/avx2/common.h"
#include "kernels/gemm.h"

namespace recua::kernels::avx2 {

RECUA_AVX2_INLINE std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Eight rows of eight become columns.
RECUA_AVX2_INLINE void transpose8(__m256 (&r)[8]) {
  const __m256 t0 = _mm256_unpacklo_ps(r[0], r[1]);
  const __m256 t1 = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 t2 = _mm256_unpacklo_ps(r[2], r[3]);
  const __m256 t3 = _mm256_unpackhi_ps(r[2], r[3]);
  const __m256 t4 = _mm256_unpacklo_ps(r[4], r[5]);
  const __m256 t5 = _mm256_unpackhi_ps(r[4], r[5]);
  const __m256 t6 = _mm256_unpacklo_ps(r[6], r[7]);
  const __m256 t7 = _mm256_unpackhi_ps(r[6], r[7]);
  const __m256 u0 = _mm256_shuffle_ps(t0, t2, 0x44);
  const __m256 u1 = _mm256_shuffle_ps(t0, t2, 0xee);
  const __m256 u2 = _mm256_shuffle_ps(t1, t3, 0x44);
  const __m256 u3 = _mm256_shuffle_ps(t1, t3, 0xee);
  const __m256 u4 = _mm256_shuffle_ps(t4, t6, 0x44);
  const __m256 u5 = _mm256_shuffle_ps(t4, t6, 0xee);
  const __m256 u6 = _mm256_shuffle_ps(t5, t7, 0x44);
  const __m256 u7 = _mm256_shuffle_ps(t5, t7, 0xee);
  r[0] = _mm256_permute2f128_ps(u0, u4, 0x20);
  r[1] = _mm256_permute2f128_ps(u1, u5, 0x20);
  r[2] = _mm256_permute2f128_ps(u2, u6, 0x20);
  r[3] = _mm256_permute2f128_ps(u3, u7, 0x20);
  r[4] = _mm256_permute2f128_ps(u0, u4, 0x31);
  r[5] = _mm256_permute2f128_ps(u1, u5, 0x31);
  r[6] = _mm256_permute2f128_ps(u2, u6, 0x31);
  r[7] = _mm256_permute2f128_ps(u3, u7, 0x31);
}

// The first n of v, which are 4, 6 or 8.
RECUA_AVX2_INLINE void store_first(float* to, std::size_t n, __m256 v) {
  if (n == 8) {
    _mm256_storeu_ps(to, v);
    return;
  }
  _mm_storeu_ps(to, _mm256_castps256_ps128(v));
  if (n == 6) _mm_storel_pi(reinterpret_cast<__m64*>(to + 4), _mm256_extractf128_ps(v, 1));
}

// A panel from memory where p runs along a row: out[p * kWidth + i] = from[i * stride + p], zeros
// from row n_rows on.
template <std::size_t kWidth>
RECUA_AVX2_INLINE void pack_across(const float* from, std::size_t stride, std::size_t n_rows,
                                   std::size_t k, float* out) {
  std::size_t p = 0;
  for (; p + 8 <= k; p += 8) {
    for (std::size_t first = 0; first < kWidth; first += 8) {
      __m256 r[8];
      for (std::size_t i = 0; i < 8; ++i) {
        const bool here = first + i < kWidth && first + i < n_rows;
        r[i] = here ? _mm256_loadu_ps(from + (first + i) * stride + p) : _mm256_setzero_ps();
      }
      transpose8(r);
      for (std::size_t q = 0; q < 8; ++q) {
        store_first(out + (p + q) * kWidth + first, smaller(8, kWidth - first), r[q]);
      }
    }
  }
  for (; p < k; ++p) {
    for (std::size_t i = 0; i < kWidth; ++i) {
      out[p * kWidth + i] = i < n_rows ? from[i * stride + p] : 0.0F;
    }
  }
}

// Panels from memory where p runs from row to row: out[p * kWidth + i] = from[p * stride + i]. Four
// at a time, since a row of one is less than two cache lines, and rows that are a power of two
// apart share few places in a cache: one panel after the other would read each line two or three
// times.
template <std::size_t kWidth>
RECUA_AVX2_INLINE void pack_along(const float* from, std::size_t stride, std::size_t n_columns,
                                  std::size_t k, float* out) {
  constexpr std::size_t kPanels = 4;
  constexpr std::size_t kRowsAhead = 8;  // No hardware looks beyond a page for the next row.
  for (std::size_t first = 0; first < n_columns; first += kPanels * kWidth) {
    const std::size_t end = smaller(n_columns, first + kPanels * kWidth);
    for (std::size_t p = 0; p < k; ++p) {
      const float* const row = from + p * stride;
      for (std::size_t i = first; i < end; i += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(row + kRowsAhead * stride + i), _MM_HINT_T0);
      }
      for (std::size_t i = first; i < end; i += kWidth) {
        float* const to = out + i * k + p * kWidth;
        const std::size_t n = smaller(kWidth, end - i);
        for (std::size_t v = 0; v < kWidth; v += 8) {
          const std::size_t there = n > v ? smaller(8, n - v) : 0;
          const __m256 values = there == 8 ? _mm256_loadu_ps(row + i + v)
                                           : _mm256_maskload_ps(row + i + v, first_lanes(there));
          store_first(to + v, smaller(8, kWidth - v), values);
        }
      }
    }
  }
}

// Rows (columns for b, which is seen transposed) [begin, begin + n) and p in [p0, p0 + k) of a
// matrix whose element (i, p) is at data[i * stride + p], or the other way round.
template <std::size_t kWidth>
RECUA_AVX2_INLINE void pack(const float* data, std::size_t stride, bool p_is_contiguous,
                            std::size_t begin, std::size_t n, std::size_t p0, std::size_t k,
                            float* out) {
  if (!p_is_contiguous) {
    pack_along<kWidth>(data + p0 * stride + begin, stride, n, k, out);
    return;
  }
  for (std::size_t i = 0; i < n; i += kWidth, out += k * kWidth) {
    pack_across<kWidth>(data + (begin + i) * stride + p0, stride, smaller(kWidth, n - i), k, out);
  }
}

RECUA_AVX2_INLINE void clear(const GemmArgs& args) {
  for (std::size_t i = 0; i < args.m; ++i) {
    for (std::size_t j = 0; j < args.n; ++j) args.c[i * args.c_stride + j] = 0.0F;
  }
}

/// Tile has kM and kN, the size of a tile, and run(): packed a and b, k, whether to add to c, c and
/// its stride, and how many rows and columns of the tile exist.
template <class Tile>
RECUA_AVX2_INLINE void gemm_by_tiles(const GemmArgs& args) {
  constexpr std::size_t kM = Tile::kM;
  constexpr std::size_t kN = Tile::kN;
  static_assert(kGemmBlockM % kM == 0 && kGemmBlockN % kN == 0);
  static_assert(kGemmCutM % kM == 0 && kGemmCutN % kN == 0);
  float* const packed_a = args.scratch;
  float* const packed_b = args.scratch + kGemmBlockM * kGemmBlockK;
  if (args.k == 0 && !args.accumulate) clear(args);
  for (std::size_t j0 = 0; j0 < args.n; j0 += kGemmBlockN) {
    const std::size_t n = smaller(kGemmBlockN, args.n - j0);
    for (std::size_t p0 = 0; p0 < args.k; p0 += kGemmBlockK) {
      const std::size_t k = smaller(kGemmBlockK, args.k - p0);
      const bool add = args.accumulate || p0 > 0;
      pack<kN>(args.b.data, args.b.stride, args.b.transposed, j0, n, p0, k, packed_b);
      for (std::size_t i0 = 0; i0 < args.m; i0 += kGemmBlockM) {
        const std::size_t m = smaller(kGemmBlockM, args.m - i0);
        pack<kM>(args.a.data, args.a.stride, !args.a.transposed, i0, m, p0, k, packed_a);
        for (std::size_t j = 0; j < n; j += kN) {
          for (std::size_t i = 0; i < m; i += kM) {
            Tile::run(packed_a + i * k, packed_b + j * k, k, add,
                      args.c + (i0 + i) * args.c_stride + j0 + j, args.c_stride, smaller(kM, m - i),
                      smaller(kN, n - j));
          }
        }
      }
    }
  }
}

}  // namespace recua::kernels::avx2
