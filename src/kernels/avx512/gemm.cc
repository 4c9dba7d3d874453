// A tile of 12 x 32 holds 24 sums; with two vectors of b and a broadcast of a that is 27 of the 32
// registers. A step loads 14 times for 24 FMAs, where the tile of AVX2 loads 8 times for 12: on Zen
// 4, whose FMAs are as many per cycle with either width, that is what AVX-512 gains.
#include "kernels/gemm.h"

#include "kernels/avx2/gemm_frame.h"
#include "kernels/avx512/common.h"

namespace recua::kernels::avx512 {
namespace {

struct Tile {
  static constexpr std::size_t kM = 12;
  static constexpr std::size_t kN = 32;

  RECUA_AVX512_INLINE void run(const float* a, const float* b, std::size_t k, bool add, float* c,
                               std::size_t stride, std::size_t rows, std::size_t columns) {
    __m512 low[kM];
    __m512 high[kM];
    RECUA_UNROLL
    for (std::size_t i = 0; i < kM; ++i) low[i] = high[i] = _mm512_setzero_ps();
    for (std::size_t p = 0; p < k; ++p, a += kM, b += kN) {
      const __m512 b0 = _mm512_loadu_ps(b);
      const __m512 b1 = _mm512_loadu_ps(b + 16);
      RECUA_UNROLL
      for (std::size_t i = 0; i < kM; ++i) {
        const __m512 factor = _mm512_set1_ps(a[i]);
        low[i] = _mm512_fmadd_ps(factor, b0, low[i]);
        high[i] = _mm512_fmadd_ps(factor, b1, high[i]);
      }
    }
    const __mmask16 in_low = first_lanes(columns);
    const __mmask16 in_high = first_lanes(columns > 16 ? columns - 16 : 0);
    RECUA_UNROLL
    for (std::size_t i = 0; i < kM; ++i) {
      if (i >= rows) return;
      float* const out = c + i * stride;
      if (add) {
        low[i] = _mm512_add_ps(_mm512_maskz_loadu_ps(in_low, out), low[i]);
        high[i] = _mm512_add_ps(_mm512_maskz_loadu_ps(in_high, out + 16), high[i]);
      }
      _mm512_mask_storeu_ps(out, in_low, low[i]);
      _mm512_mask_storeu_ps(out + 16, in_high, high[i]);
    }
  }
};

}  // namespace

void gemm(const GemmArgs& args) { avx2::gemm_by_tiles<Tile>(args); }

}  // namespace recua::kernels::avx512
