// Softmax of a piece, the merging of pieces, and the widening of what is cached.
#include "kernels/attention.h"
#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

RECUA_AVX2_INLINE void widen16(__m128i q, __m256 scale_low, __m256 scale_high, float* out) {
  const __m256i high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), scale_low));
  _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale_high));
}

RECUA_AVX2_INLINE __m128i nibbles(__m128i q, int shift) {
  q = _mm_and_si128(_mm_srl_epi16(q, _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
  return _mm_sub_epi8(q, _mm_set1_epi8(8));
}

void widen_f16(const std::byte* from, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(load128(from + 2 * i)));
  for (; i < n; ++i) out[i] = load_f16(reinterpret_cast<const std::uint8_t*>(from + 2 * i));
}

}  // namespace

SoftmaxPart softmax_part(float* scores, std::size_t n) {
  __m256 maxima = _mm256_set1_ps(scores[0]);
  std::size_t j = 0;
  for (; j + 8 <= n; j += 8) maxima = _mm256_max_ps(_mm256_loadu_ps(scores + j), maxima);
  const std::size_t n_whole = j;
  const __m256i mask = first_lanes(n - n_whole);
  if (j < n) {
    const __m256 tail = _mm256_maskload_ps(scores + j, mask);
    maxima = _mm256_max_ps(_mm256_blendv_ps(maxima, tail, _mm256_castsi256_ps(mask)), maxima);
  }
  const float max = max_lanes(maxima);

  const auto exp_of = [&](__m256 score) __attribute__((always_inline)) {
    const __m256 x = _mm256_sub_ps(score, _mm256_set1_ps(max));
    const __m256 vanishes = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0F), _CMP_LT_OQ);
    return _mm256_andnot_ps(vanishes, exp_lanes(x));
  };
  __m256 sum = _mm256_setzero_ps();
  for (j = 0; j < n_whole; j += 8) {
    const __m256 e = exp_of(_mm256_loadu_ps(scores + j));
    _mm256_storeu_ps(scores + j, e);
    sum = _mm256_add_ps(sum, e);
  }
  if (j < n) {
    const __m256 e = exp_of(_mm256_maskload_ps(scores + j, mask));
    _mm256_maskstore_ps(scores + j, mask, e);
    sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
  }
  return {max, sum_lanes(sum)};
}

void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running) {
  const bool part_is_smaller = part.max <= running.max;
  const float difference = part_is_smaller ? part.max - running.max : running.max - part.max;
  const __m256 x = _mm256_set1_ps(difference);
  const __m256 vanishes = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0F), _CMP_LT_OQ);
  const __m256 scale = _mm256_andnot_ps(vanishes, exp_lanes(x));
  const __m128 one = _mm256_castps256_ps128(scale);
  const float* const small = part_is_smaller ? part_values : out;
  const float* const large = part_is_smaller ? out : part_values;
  std::size_t d = 0;
  for (; d + 8 <= n; d += 8) {
    const __m256 sum =
        _mm256_fmadd_ps(_mm256_loadu_ps(small + d), scale, _mm256_loadu_ps(large + d));
    _mm256_storeu_ps(out + d, sum);
  }
  for (; d < n; ++d) {
    out[d] = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(small[d]), one, _mm_set_ss(large[d])));
  }
  const float small_sum = part_is_smaller ? part.sum : running.sum;
  const float large_sum = part_is_smaller ? running.sum : part.sum;
  running.sum = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(small_sum), one, _mm_set_ss(large_sum)));
  if (!part_is_smaller) running.max = part.max;
}

void widen_keys(DataType type, const std::byte* groups, std::size_t n_groups, std::size_t head_dim,
                float* out) {
  if (type == DataType::kF16 || type == DataType::kF32) {
    return widen_values(type, groups, n_groups * head_dim * kKeyGroup, out);
  }
  const std::size_t n_quant_rows = type == DataType::kQ8_0 ? 32 : 16;
  const std::size_t n_blocks = n_groups * (head_dim / 32);
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const __m256 low = _mm256_cvtph_ps(load128(groups));
    const __m256 high = _mm256_cvtph_ps(load128(groups + 16));
    groups += 2 * kKeyGroup;
    for (std::size_t i = 0; i < n_quant_rows; ++i, groups += kKeyGroup, out += kKeyGroup) {
      const __m128i q = load128(groups);
      if (type == DataType::kQ8_0) {
        widen16(q, low, high, out);
      } else {
        widen16(nibbles(q, 0), low, high, out);
        widen16(nibbles(q, 4), low, high, out + 16 * kKeyGroup);
      }
    }
    if (type == DataType::kQ4_0) out += 16 * kKeyGroup;
  }
}

void widen_values(DataType type, const std::byte* values, std::size_t n, float* out) {
  if (type == DataType::kF32) {
    __builtin_memcpy(out, values, n * sizeof(float));
    return;
  }
  if (type == DataType::kF16) return widen_f16(values, n, out);
  for (std::size_t i = 0; i < n; i += 32, out += 32) {
    const __m256 scale = _mm256_set1_ps(load_f16(reinterpret_cast<const std::uint8_t*>(values)));
    const __m128i q = load128(values + 2);
    if (type == DataType::kQ8_0) {
      widen16(q, scale, scale, out);
      widen16(load128(values + 18), scale, scale, out + 16);
      values += 34;
    } else {
      widen16(nibbles(q, 0), scale, scale, out);
      widen16(nibbles(q, 4), scale, scale, out + 16);
      values += 18;
    }
  }
}

}  // namespace recua::kernels::avx2
