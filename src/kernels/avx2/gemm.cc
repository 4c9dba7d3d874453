// A tile of 6 x 16 holds 12 sums; with two vectors of b and one broadcast of a that is 15 of the 16
// registers, and 12 FMAs hide their latency of 4 on two ports.
#include "kernels/gemm.h"

#include "kernels/avx2/common.h"
#include "kernels/avx2/gemm_frame.h"

namespace recua::kernels::avx2 {
namespace {

constexpr std::size_t kM = 6;
constexpr std::size_t kN = 16;

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

struct Tile {
  static constexpr std::size_t kM = avx2::kM;
  static constexpr std::size_t kN = avx2::kN;

  // At c, of which rows x columns exist.
  RECUA_AVX2_INLINE void run(const float* a, const float* b, std::size_t k, bool add, float* c,
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
};

}  // namespace

void gemm(const GemmArgs& args) { gemm_by_tiles<Tile>(args); }

}  // namespace recua::kernels::avx2
