// Rows as the cache holds them, 32 numbers at a time; each step rounds as the scalar code does.
#include "kernels/attention.h"
#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

// The first element of the largest magnitude, made finite; 0 if there is none.
RECUA_AVX2_INLINE float largest_of(const float* x) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 magnitude[4];
  __m256 maxima = _mm256_setzero_ps();
  for (int i = 0; i < 4; ++i) {
    magnitude[i] = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + 8 * i));
    maxima = _mm256_max_ps(magnitude[i], maxima);  // A NaN gives the second operand.
  }
  const float max = max_lanes(maxima);
  if (max == 0.0F) return 0.0F;  // Not -0, and not what stands next to nothing but NaN.
  for (int i = 0; i < 4; ++i) {
    const int equal =
        _mm256_movemask_ps(_mm256_cmp_ps(magnitude[i], _mm256_set1_ps(max), _CMP_EQ_OQ));
    if (equal == 0) continue;
    const float largest = x[8 * i + __builtin_ctz(static_cast<unsigned>(equal))];
    constexpr float kF16Max = 65504.0F;
    return largest > kF16Max ? kF16Max : largest < -kF16Max ? -kF16Max : largest;
  }
  return 0.0F;
}

// 32 numbers times inverse within [min, max], as bytes in order; 0 of what is no number.
RECUA_AVX2_INLINE __m256i round32(const float* x, float inverse, float min, float max) {
  __m256i n[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 q = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
    const __m256 number = _mm256_and_ps(q, _mm256_cmp_ps(q, q, _CMP_ORD_Q));
    n[i] = _mm256_cvtps_epi32(
        _mm256_min_ps(_mm256_max_ps(number, _mm256_set1_ps(min)), _mm256_set1_ps(max)));
  }
  const __m256i bytes =
      _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(bytes, order);
}

// Writes the scale as F16; returns the inverse of what will be read back, 0 for none.
RECUA_AVX2_INLINE float put_scale(float scale, std::byte* out) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(scale), _MM_FROUND_TO_NEAREST_INT);
  const auto bits = static_cast<std::uint16_t>(_mm_extract_epi16(half, 0));
  __builtin_memcpy(out, &bits, sizeof(bits));
  const float d = _mm_cvtss_f32(_mm_cvtph_ps(half));
  return d == 0.0F ? 0.0F : 1.0F / d;
}

}  // namespace

void cache_q8_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t i = 0; i < n; i += 32, out += 34) {
    const float largest = largest_of(x + i);
    const float inverse = put_scale((largest < 0.0F ? -largest : largest) / 127.0F, out);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2),
                        round32(x + i, inverse, -127.0F, 127.0F));
  }
}

void cache_q4_0(const float* x, std::size_t n, std::byte* out) {
  for (std::size_t i = 0; i < n; i += 32, out += 18) {
    const float inverse = put_scale(largest_of(x + i) / -8.0F, out);
    const __m256i q = _mm256_add_epi8(round32(x + i, inverse, -8.0F, 7.0F), _mm256_set1_epi8(8));
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(q, 1), 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2),
                     _mm_or_si128(_mm256_castsi256_si128(q), high));
  }
}

}  // namespace recua::kernels::avx2
