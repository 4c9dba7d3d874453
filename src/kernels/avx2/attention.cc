// Scores: eight sums at a time, of 1 head x 8 tokens, 2 x 4 or 4 x 2, so that keys shared by heads
// are converted once; all eight are then reduced by one tree. Values: up to two heads share the
// conversion of 32 elements (a cache line of F16) per token. Head sizes that are no multiple of 8
// take the scalar code.
#include "kernels/attention.h"

#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

template <bool kF16>
RECUA_AVX2_INLINE __m256 load8(const std::byte* row, std::size_t d) {
  if constexpr (kF16) {
    return _mm256_cvtph_ps(load128(row + 2 * d));
  } else {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 4 * d));
  }
}

// Lane i of the result is the sum of the lanes of v[i].
RECUA_AVX2_INLINE __m256 sum_each(const __m256 v[8]) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                       _mm256_permute2f128_ps(low, high, 0x31));
}

template <bool kF16, std::size_t kHeads>
void scores_of(const float* q, const KvRun& keys, float scale, float* scores,
               std::size_t scores_stride) {
  constexpr std::size_t kTokens = 8 / kHeads;
  for (std::size_t j = 0; j < keys.n_tokens; j += kTokens) {
    const std::size_t n = keys.n_tokens - j < kTokens ? keys.n_tokens - j : kTokens;
    const std::byte* row[kTokens];
    __m256 sum[8];
    for (std::size_t i = 0; i < 8; ++i) sum[i] = _mm256_setzero_ps();
    // Past the end the last token is taken again, and its score thrown away.
    for (std::size_t i = 0; i < kTokens; ++i) {
      row[i] = keys.data + (j + (i < n ? i : n - 1)) * keys.token_stride;
    }
    for (std::size_t d = 0; d < keys.head_dim; d += 8) {
      for (std::size_t i = 0; i < kTokens; ++i) {
        const __m256 key = load8<kF16>(row[i], d);
        for (std::size_t h = 0; h < kHeads; ++h) {
          __m256& to = sum[h * kTokens + i];
          to = _mm256_fmadd_ps(_mm256_loadu_ps(q + h * keys.head_dim + d), key, to);
        }
      }
    }
    alignas(32) float out[8];
    _mm256_store_ps(out, _mm256_mul_ps(sum_each(sum), _mm256_set1_ps(scale)));
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t i = 0; i < n; ++i) {
        scores[h * scores_stride + j + i] = out[h * kTokens + i];
      }
    }
  }
}

template <bool kF16>
void scores_of_all(const float* q, std::size_t n_heads, const KvRun& keys, float scale,
                   float* scores, std::size_t scores_stride) {
  std::size_t h = 0;
  for (; h + 4 <= n_heads; h += 4) {
    scores_of<kF16, 4>(q + h * keys.head_dim, keys, scale, scores + h * scores_stride,
                       scores_stride);
  }
  for (; h + 2 <= n_heads; h += 2) {
    scores_of<kF16, 2>(q + h * keys.head_dim, keys, scale, scores + h * scores_stride,
                       scores_stride);
  }
  if (h < n_heads) {
    scores_of<kF16, 1>(q + h * keys.head_dim, keys, scale, scores + h * scores_stride,
                       scores_stride);
  }
}

template <bool kF16, std::size_t kHeads, std::size_t kVectors>
RECUA_AVX2_INLINE void add_values(const float* p, std::size_t p_stride, const KvRun& values,
                                  std::size_t d, float* out) {
  __m256 sum[kHeads][kVectors];
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      sum[h][v] = _mm256_loadu_ps(out + h * values.head_dim + d + 8 * v);
    }
  }
  for (std::size_t j = 0; j < values.n_tokens; ++j) {
    const std::byte* const row = values.data + j * values.token_stride;
    __m256 value[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) value[v] = load8<kF16>(row, d + 8 * v);
    for (std::size_t h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_broadcast_ss(p + h * p_stride + j);
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[h][v] = _mm256_fmadd_ps(weight, value[v], sum[h][v]);
      }
    }
  }
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm256_storeu_ps(out + h * values.head_dim + d + 8 * v, sum[h][v]);
    }
  }
}

template <bool kF16, std::size_t kHeads>
void values_of(const float* p, std::size_t p_stride, const KvRun& values, float* out) {
  std::size_t d = 0;
  for (; d + 32 <= values.head_dim; d += 32) {
    add_values<kF16, kHeads, 4>(p, p_stride, values, d, out);
  }
  for (; d < values.head_dim; d += 8) add_values<kF16, kHeads, 1>(p, p_stride, values, d, out);
}

template <bool kF16>
void values_of_all(const float* p, std::size_t p_stride, std::size_t n_heads, const KvRun& values,
                   float* out) {
  std::size_t h = 0;
  for (; h + 2 <= n_heads; h += 2) {
    values_of<kF16, 2>(p + h * p_stride, p_stride, values, out + h * values.head_dim);
  }
  if (h < n_heads) {
    values_of<kF16, 1>(p + h * p_stride, p_stride, values, out + h * values.head_dim);
  }
}

}  // namespace

void attention_scores(const float* q, std::size_t n_heads, const KvRun& keys, float scale,
                      float* scores, std::size_t scores_stride) {
  if (keys.head_dim % 8 != 0) {
    scalar::attention_scores(q, n_heads, keys, scale, scores, scores_stride);
  } else if (keys.is_f16) {
    scores_of_all<true>(q, n_heads, keys, scale, scores, scores_stride);
  } else {
    scores_of_all<false>(q, n_heads, keys, scale, scores, scores_stride);
  }
}

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

void attention_values(const float* p, std::size_t p_stride, std::size_t n_heads,
                      const KvRun& values, float* out) {
  if (values.head_dim % 8 != 0) {
    scalar::attention_values(p, p_stride, n_heads, values, out);
  } else if (values.is_f16) {
    values_of_all<true>(p, p_stride, n_heads, values, out);
  } else {
    values_of_all<false>(p, p_stride, n_heads, values, out);
  }
}

}  // namespace recua::kernels::avx2
