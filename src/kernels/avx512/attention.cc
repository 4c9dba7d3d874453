// Scores and weighted values as in avx2/attention.cc, with 16 columns in a vector: 6 rows x 4
// vectors are 24 sums of 32 registers, and a step loads 10 times for 24 FMAs, where AVX2 loads 8
// times for
// 12. The sums are the same chains, so the same bits.
#include "kernels/attention.h"

#include "kernels/avx2/attention_frame.h"
#include "kernels/avx512/common.h"

namespace recua::kernels::avx512 {
namespace {

using avx2::cached_row_bytes;
using avx2::is_float;
using avx2::quant_block_bytes;
using quant::DataType;

template <DataType kType>
RECUA_AVX512_INLINE __m512 widen_floats(const std::byte* at) {
  if constexpr (kType == DataType::kF32) return _mm512_loadu_ps(at);
  return _mm512_cvtph_ps(load256(at));
}

template <DataType kType>
RECUA_AVX512_INLINE __m512 widen_quants(const std::byte* at, int shift, __m512 scale) {
  const __m128i q = avx2::load_quants<kType>(at, shift);
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), scale);
}

struct Tiles {
  static constexpr std::size_t kRowsMax = 6;

  static constexpr std::size_t groups_at_once(DataType type, std::size_t n_rows) {
    if (!is_float(type)) return 1;
    return n_rows == 1 ? 8 : 4;
  }

  template <DataType kType, std::size_t kRows, std::size_t kGroups>
  RECUA_AVX512_INLINE void score_groups(const float* q, std::size_t head_dim,
                                        const std::byte* group, std::ptrdiff_t offset,
                                        float* scores, std::size_t scores_stride) {
    __m512 sum[kRows][kGroups];
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) sum[r][g] = _mm512_setzero_ps();
    }
    if constexpr (is_float(kType)) {
      constexpr std::size_t kBytes = kKeyGroup * avx2::float_bytes(kType);
      for (std::size_t d = 0; d < head_dim; ++d) {
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          const std::byte* const at = group + (g * head_dim + d) * kBytes;
          _mm_prefetch(reinterpret_cast<const char*>(at + offset), _MM_HINT_T0);
          const __m512 key = widen_floats<kType>(at);
          RECUA_UNROLL
          for (std::size_t r = 0; r < kRows; ++r) {
            sum[r][g] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * head_dim + d]), key, sum[r][g]);
          }
        }
      }
    } else {
      static_assert(kGroups == 1);
      constexpr int kHalves = kType == DataType::kQ4_0 ? 2 : 1;
      constexpr std::size_t kQuantRows = 32 / kHalves;
      for (std::size_t d = 0; d < head_dim; d += 32) {
        const std::byte* const block = group + d / 32 * kKeyGroup * quant_block_bytes(kType);
        const __m512 scale = widen_floats<DataType::kF16>(block);
        for (int half = 0; half < kHalves; ++half) {
          const float* const x_block = q + d + 16 * static_cast<std::size_t>(half);
          for (std::size_t i = 0; i < kQuantRows; ++i) {
            const std::byte* const at = block + (2 + i) * kKeyGroup;
            _mm_prefetch(reinterpret_cast<const char*>(at + offset), _MM_HINT_T0);
            const __m512 key = widen_quants<kType>(at, 4 * half, scale);
            RECUA_UNROLL
            for (std::size_t r = 0; r < kRows; ++r) {
              const __m512 x = _mm512_set1_ps(x_block[r * head_dim + i]);
              sum[r][0] = _mm512_fmadd_ps(x, key, sum[r][0]);
            }
          }
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        _mm512_storeu_ps(scores + r * scores_stride + g * kKeyGroup, sum[r][g]);
      }
    }
  }

  // out[r][d .. d + 16 kVectors) += p[r] . values; d is a multiple of 16 kVectors.
  template <DataType kType, std::size_t kRows, std::size_t kVectors>
  RECUA_AVX512_INLINE void add_values(const float* p, std::size_t p_stride, const ValueRun& values,
                                      std::size_t d, float* out) {
    __m512 sum[kRows][kVectors];
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_loadu_ps(out + r * values.head_dim + d + 16 * v);
      }
    }
    const std::size_t row_bytes = cached_row_bytes(kType, values.head_dim);
    const std::byte* at = values.data + cached_row_bytes(kType, d / 32 * 32);
    // What comes next is asked for from its begin to its end, whatever the order of use here.
    const std::size_t ahead_step = row_bytes * 16 * kVectors / values.head_dim;
    const std::byte* ahead = values.next == nullptr
                                 ? at
                                 : values.next + d * row_bytes / values.head_dim * values.n_tokens;
    for (std::size_t j = 0; j < values.n_tokens; ++j, at += row_bytes) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      ahead += ahead_step;
      __m512 value[kVectors];
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        const std::size_t i = d % 32 + 16 * v;  // Counted from `at`.
        if constexpr (is_float(kType)) {
          value[v] = widen_floats<kType>(at + i * avx2::float_bytes(kType));
        } else {
          const std::byte* const block = at + i / 32 * quant_block_bytes(kType);
          const float scale = avx2::load_f16(reinterpret_cast<const std::uint8_t*>(block));
          const std::size_t row = kType == DataType::kQ4_0 ? 0 : i % 32;
          value[v] =
              widen_quants<kType>(block + 2 + row, i % 32 < 16 ? 0 : 4, _mm512_set1_ps(scale));
        }
      }
      RECUA_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        const __m512 weight = _mm512_set1_ps(p[r * p_stride + j]);
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          sum[r][v] = _mm512_fmadd_ps(weight, value[v], sum[r][v]);
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(out + r * values.head_dim + d + 16 * v, sum[r][v]);
      }
    }
  }

  template <DataType kType, std::size_t kRows>
  static void values_of(const float* p, std::size_t p_stride, const ValueRun& values, float* out) {
    std::size_t d = 0;
    if constexpr (kRows <= 3) {
      for (; d + 128 <= values.head_dim; d += 128) {
        add_values<kType, kRows, 8>(p, p_stride, values, d, out);
      }
    }
    for (; d + 64 <= values.head_dim; d += 64) {
      add_values<kType, kRows, 4>(p, p_stride, values, d, out);
    }
    for (; d + 16 <= values.head_dim; d += 16) {
      add_values<kType, kRows, 1>(p, p_stride, values, d, out);
    }
  }
};

}  // namespace

void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride) {
  avx2::AttentionFrame<Tiles>::scores(q, n_rows, keys, scores, scores_stride);
}

void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out) {
  if (values.head_dim % 16 != 0) {
    return avx2::attention_values(p, p_stride, n_rows, values, out);
  }
  avx2::AttentionFrame<Tiles>::values(p, p_stride, n_rows, values, out);
}

SoftmaxPart softmax_part(float* scores, std::size_t n) {
  __m512 maxima = _mm512_set1_ps(scores[0]);
  std::size_t j = 0;
  // A NaN gives the second operand, so it is passed over as in the scalar code.
  for (; j + 16 <= n; j += 16) maxima = _mm512_max_ps(_mm512_loadu_ps(scores + j), maxima);
  const std::size_t n_whole = j;
  const __mmask16 rest = first_lanes(n - n_whole);
  const __m512 tail = _mm512_mask_loadu_ps(maxima, rest, scores + n_whole);
  const float max = _mm512_reduce_max_ps(_mm512_max_ps(tail, maxima));

  const auto exp_of = [&](__m512 score) __attribute__((always_inline)) {
    const __m512 x = _mm512_sub_ps(score, _mm512_set1_ps(max));
    const __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0F), _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(stays, exp_lanes(x));
  };
  __m512 sum = _mm512_setzero_ps();
  for (j = 0; j < n_whole; j += 16) {
    const __m512 e = exp_of(_mm512_loadu_ps(scores + j));
    _mm512_storeu_ps(scores + j, e);
    sum = _mm512_add_ps(sum, e);
  }
  if (j < n) {
    const __m512 e = exp_of(tail);
    _mm512_mask_storeu_ps(scores + j, rest, e);
    sum = _mm512_mask_add_ps(sum, rest, sum, e);
  }
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
  return {max, avx2::sum_lanes(halves)};
}

}  // namespace recua::kernels::avx512
