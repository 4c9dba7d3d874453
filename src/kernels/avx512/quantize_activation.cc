// Both kinds of blocks: 16 numbers at a time, sums by the 8-bit dot product with ones.
#include "kernels/activation.h"
#include "kernels/avx512/common.h"

namespace recua::kernels::avx512 {
namespace {

// A NaN gives the second operand, so it is passed over as in the scalar code.
RECUA_AVX512_INLINE __m512 max_abs(const float* x, __m512 max) {
  return _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x)), max);
}

// 16 numbers times inverse, to the nearest (ties to even). A NaN became -128.
RECUA_AVX512_INLINE __m128i round16(const float* x, __m512 inverse) {
  const __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse));
  return _mm_max_epi8(_mm512_cvtsepi32_epi8(n), _mm_set1_epi8(-127));
}

// 128-bit lane i of the result has the sums over 128-bit lane i of a, of b, of c and of d.
RECUA_AVX512_INLINE __m512i sum_quarters(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

RECUA_AVX512_INLINE float inverse_of(float max) { return max < kTiny ? 0.0F : 127.0F / max; }
RECUA_AVX512_INLINE float scale_of(float max) { return max < kTiny ? 0.0F : max / 127.0F; }

}  // namespace

void quantize_blocks32(const float* x, std::size_t n, std::byte* out) {
  auto* const blocks = reinterpret_cast<ActivationBlock32*>(out);
  for (std::size_t b = 0; b < n / 32; ++b) {
    const float* const from = x + 32 * b;
    const float max = _mm512_reduce_max_ps(max_abs(from + 16, max_abs(from, _mm512_setzero_ps())));
    const __m512 inverse = _mm512_set1_ps(inverse_of(max));
    const __m256i q = _mm256_set_m128i(round16(from + 16, inverse), round16(from, inverse));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(blocks[b].q), q);
    const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    blocks[b].d = scale_of(max);
    blocks[b].offset = -128 * _mm_cvtsi128_si32(sum);
  }
}

void quantize_blocks256(const float* x, std::size_t n, std::byte* out) {
  auto* const blocks = reinterpret_cast<ActivationBlock256*>(out);
  for (std::size_t b = 0; b < n / 256; ++b) {
    ActivationBlock256& block = blocks[b];
    const float* const from = x + 256 * b;
    __m512 maxima = _mm512_setzero_ps();
    for (std::size_t i = 0; i < 16; ++i) maxima = max_abs(from + 16 * i, maxima);
    const float max = _mm512_reduce_max_ps(maxima);
    const __m512 inverse = _mm512_set1_ps(inverse_of(max));
    for (std::size_t i = 0; i < 16; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(block.q + 16 * i),
                       round16(from + 16 * i, inverse));
    }
    __m512i fours[4];
    for (std::size_t i = 0; i < 4; ++i) {
      fours[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                     load512(block.q + 64 * i));
    }
    // 128-bit lane i now has the sums of the sixteens i, 4 + i, 8 + i and 12 + i.
    const __m512i quarters = sum_quarters(fours[0], fours[1], fours[2], fours[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i sums = _mm512_permutexvar_epi32(order, quarters);
    _mm512_storeu_si512(block.offsets,
                        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 5)));
    // Per 64 bits the sum of its two lanes, in the lower half.
    const __m512i pairs = _mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.sums32), _mm512_cvtepi64_epi16(pairs));
    block.d = scale_of(max);
  }
}

}  // namespace recua::kernels::avx512
