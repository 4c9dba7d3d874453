// Blocks of a and b are copied into panels first: kGemmTileM rows (kGemmTileN columns) side by
// side for each p, so that a tile reads both straight through. A tile of 6 x 16 holds 12 sums; with
// two vectors of b and one broadcast of a that is 15 of the 16 registers, and 12 FMAs hide their
// latency of 4 on two ports. Panels at the edge are filled up with zeros and go through the same
// tile, so where an output lies in c does not show in it.
#include "kernels/gemm.h"

#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

constexpr std::size_t kM = kGemmTileM;
constexpr std::size_t kN = kGemmTileN;

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
      const std::size_t width = smaller(8, kWidth - first);
      for (std::size_t q = 0; q < 8; ++q) {
        float* const to = out + (p + q) * kWidth + first;
        if (width == 8) {
          _mm256_storeu_ps(to, r[q]);
        } else {
          _mm256_maskstore_ps(to, first_lanes(width), r[q]);
        }
      }
    }
  }
  for (; p < k; ++p) {
    for (std::size_t i = 0; i < kWidth; ++i) {
      out[p * kWidth + i] = i < n_rows ? from[i * stride + p] : 0.0F;
    }
  }
}

// A panel from memory where p runs from row to row: out[p * kWidth + i] = from[p * stride + i].
template <std::size_t kWidth>
RECUA_AVX2_INLINE void pack_along(const float* from, std::size_t stride, std::size_t n_columns,
                                  std::size_t k, float* out) {
  constexpr std::size_t kLast = (kWidth + 7) / 8 - 1;  // The vector that may be a partial one.
  const std::size_t n = smaller(n_columns, kWidth);
  for (std::size_t p = 0; p < k; ++p) {
    for (std::size_t v = 0; v <= kLast; ++v) {
      const std::size_t there = n > 8 * v ? smaller(8, n - 8 * v) : 0;
      const std::size_t width = smaller(8, kWidth - 8 * v);
      const __m256 values = there == 8
                                ? _mm256_loadu_ps(from + p * stride + 8 * v)
                                : _mm256_maskload_ps(from + p * stride + 8 * v, first_lanes(there));
      if (width == 8) {
        _mm256_storeu_ps(out + p * kWidth + 8 * v, values);
      } else {
        _mm256_maskstore_ps(out + p * kWidth + 8 * v, first_lanes(width), values);
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
  for (std::size_t i = 0; i < n; i += kWidth, out += k * kWidth) {
    const std::size_t here = smaller(kWidth, n - i);
    if (p_is_contiguous) {
      pack_across<kWidth>(data + (begin + i) * stride + p0, stride, here, k, out);
    } else {
      pack_along<kWidth>(data + p0 * stride + begin + i, stride, here, k, out);
    }
  }
}

struct Sums {
  __m256 at[kM][2];
};

RECUA_AVX2_INLINE Sums multiply(const float* a, const float* b, std::size_t k) {
  Sums sums;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kM; ++i) sums.at[i][0] = sums.at[i][1] = _mm256_setzero_ps();
  for (std::size_t p = 0; p < k; ++p, a += kM, b += kN) {
    const __m256 b0 = _mm256_loadu_ps(b);
    const __m256 b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kM; ++i) {
      const __m256 factor = _mm256_broadcast_ss(a + i);
      sums.at[i][0] = _mm256_fmadd_ps(factor, b0, sums.at[i][0]);
      sums.at[i][1] = _mm256_fmadd_ps(factor, b1, sums.at[i][1]);
    }
  }
  return sums;
}

// The tile at c, of which rows x columns exist.
RECUA_AVX2_INLINE void tile(const float* a, const float* b, std::size_t k, bool add, float* c,
                            std::size_t stride, std::size_t rows, std::size_t columns) {
  const Sums sums = multiply(a, b, k);
  if (rows == kM && columns == kN) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kM; ++i) {
      float* const out = c + i * stride;
      const __m256 low = add ? _mm256_add_ps(_mm256_loadu_ps(out), sums.at[i][0]) : sums.at[i][0];
      const __m256 high =
          add ? _mm256_add_ps(_mm256_loadu_ps(out + 8), sums.at[i][1]) : sums.at[i][1];
      _mm256_storeu_ps(out, low);
      _mm256_storeu_ps(out + 8, high);
    }
    return;
  }
  alignas(32) float copy[kM * kN];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kM; ++i) {
    _mm256_store_ps(copy + i * kN, sums.at[i][0]);
    _mm256_store_ps(copy + i * kN + 8, sums.at[i][1]);
  }
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      float& out = c[i * stride + j];
      out = add ? out + copy[i * kN + j] : copy[i * kN + j];
    }
  }
}

void clear(const GemmArgs& args) {
  for (std::size_t i = 0; i < args.m; ++i) {
    for (std::size_t j = 0; j < args.n; ++j) args.c[i * args.c_stride + j] = 0.0F;
  }
}

}  // namespace

void gemm(const GemmArgs& args) {
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
            tile(packed_a + i * k, packed_b + j * k, k, add,
                 args.c + (i0 + i) * args.c_stride + j0 + j, args.c_stride, smaller(kM, m - i),
                 smaller(kN, n - j));
          }
        }
      }
    }
  }
}

}  // namespace recua::kernels::avx2
