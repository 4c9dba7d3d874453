// Rounds 32 numbers at a time; blocks of 256 find their maximum in a first pass.
#include "kernels/activation.h"
#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

RECUA_AVX2_INLINE __m256 max_abs(const float* x, __m256 max) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  for (int i = 0; i < 4; ++i) {
    // A NaN gives the second operand, so it is passed over as in the scalar code.
    max = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + 8 * i)), max);
  }
  return max;
}

// 32 numbers times inverse, to the nearest (ties to even), as bytes in order.
RECUA_AVX2_INLINE __m256i round32(const float* x, __m256 inverse) {
  __m256i n[4];
  for (int i = 0; i < 4; ++i) {
    n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
  }
  const __m256i bytes =
      _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
  // Packing works within 128-bit halves: put the groups of four back in order. A NaN became -128.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_max_epi8(_mm256_permutevar8x32_epi32(bytes, order), _mm256_set1_epi8(-127));
}

// Per half of 16 bytes, in all its 32-bit lanes: the sum of bytes 0 1 4 5 8 9 12 13 and, in the
// upper 16 bits, that of the others.
RECUA_AVX2_INLINE __m256i sum_pairs(__m256i q) {
  __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0x4e));
  return _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0xb1));
}

// The sums of the two halves, each in all 32-bit lanes of its half.
RECUA_AVX2_INLINE __m256i sum_sixteens(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

}  // namespace

void quantize_q8x32(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  float* s = d + n / 32;
  auto* fours = reinterpret_cast<std::int16_t*>(s + n / 32);
  for (std::size_t b = 0; b < n / 32; ++b) {
    const float max = max_lanes(max_abs(x + 32 * b, _mm256_setzero_ps()));
    const float inverse = max < kTiny ? 0.0F : 127.0F / max;
    const __m256i bytes = round32(x + 32 * b, _mm256_set1_ps(inverse));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 32 * b), bytes);
    const __m256i pairs = sum_pairs(bytes);
    const __m256i halves = sum_sixteens(pairs);
    const int sum = _mm256_extract_epi32(halves, 0) + _mm256_extract_epi32(halves, 4);
    d[b] = max < kTiny ? 0.0F : max / 127.0F;
    s[b] = d[b] * static_cast<float>(sum);
    const __m128i both =
        _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const int two = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(both, 2)));
    __builtin_memcpy(fours + 2 * b, &two, sizeof(two));
  }
}

void quantize_q8x256(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  auto* sums = reinterpret_cast<std::int16_t*>(out + n + n / 256 * 4);
  std::int16_t* sums32 = sums + n / 16;
  std::int16_t* offsets = sums32 + n / 32;
  for (std::size_t b = 0; b < n / 256; ++b) {
    const float* const block = x + 256 * b;
    __m256 maxima = _mm256_setzero_ps();
    for (std::size_t i = 0; i < 8; ++i) maxima = max_abs(block + 32 * i, maxima);
    const float max = max_lanes(maxima);
    const float inverse = max < kTiny ? 0.0F : 127.0F / max;
    for (std::size_t i = 0; i < 8; ++i) {
      const __m256i bytes = round32(block + 32 * i, _mm256_set1_ps(inverse));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 256 * b + 32 * i), bytes);
      const __m256i pairs = sum_pairs(bytes);
      const __m256i halves = sum_sixteens(pairs);
      const int low = _mm256_extract_epi32(halves, 0);
      const int high = _mm256_extract_epi32(halves, 4);
      sums[16 * b + i] = static_cast<std::int16_t>(low);
      sums[16 * b + 8 + i] = static_cast<std::int16_t>(high);
      sums32[8 * b + i] = static_cast<std::int16_t>(low + high);
      const __m256i offset = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(pairs, 5));
      const int two[2] = {_mm256_extract_epi32(offset, 0), _mm256_extract_epi32(offset, 4)};
      __builtin_memcpy(offsets + 32 * b + 4 * i, two, sizeof(two));
    }
    d[b] = max < kTiny ? 0.0F : max / 127.0F;
  }
}

void quantize_q16x32(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int16_t*>(out);
  auto* d = reinterpret_cast<float*>(out + 2 * n);
  for (std::size_t b = 0; b < n / 32; ++b) {
    const float max = max_lanes(max_abs(x + 32 * b, _mm256_setzero_ps()));
    const float inverse = max < kTiny ? 0.0F : 127.0F / max;
    const __m256i bytes = round32(x + 32 * b, _mm256_set1_ps(inverse));
    auto* const to = reinterpret_cast<__m256i*>(q + 32 * b);
    _mm256_storeu_si256(to, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
    _mm256_storeu_si256(to + 1, _mm256_srai_epi16(bytes, 8));
    d[b] = max < kTiny ? 0.0F : max / 127.0F;
  }
}

}  // namespace recua::kernels::avx2
