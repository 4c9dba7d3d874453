// Scores and weighted values, straight from the cached types.
//
// Both are products of a few rows (1 to 6) with 16 columns at a time: scores with 16 tokens of a
// group of keys, values with 16 elements of a row. Per element (or token) two vectors of the cache
// are widened and serve all rows. 6 rows x 2 vectors are 12 sums of 16 registers; fewer rows take
// more columns at once, so that there are at least 8 sums: an FMA takes 4 cycles and two can start
// in each.
#include "kernels/attention.h"

#include "kernels/avx2/attention_frame.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

struct Pair {
  __m256 low, high;  // 16 elements side by side.
};

// 16 quants times their scales.
template <DataType kType>
RECUA_AVX2_INLINE Pair widen_quants(const std::byte* at, int shift, Pair scale) {
  const __m128i q = load_quants<kType>(at, shift);
  const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
  const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)));
  return {_mm256_mul_ps(low, scale.low), _mm256_mul_ps(high, scale.high)};
}

template <DataType kType>
RECUA_AVX2_INLINE Pair widen_floats(const std::byte* at) {
  if constexpr (kType == DataType::kF32) {
    const auto* x = reinterpret_cast<const float*>(at);
    return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
  } else {
    return {_mm256_cvtph_ps(load128(at)), _mm256_cvtph_ps(load128(at + 16))};
  }
}

struct Tiles {
  static constexpr std::size_t kRowsMax = 6;

  // Few rows have too few sums to keep the units busy with one group. With quants, widening them is
  // most of the work, and it overlaps by itself.
  static constexpr std::size_t groups_at_once(DataType type, std::size_t n_rows) {
    if (!is_float(type)) return 1;
    return n_rows == 1 ? 4 : n_rows <= 3 ? 2 : 1;
  }

  template <DataType kType, std::size_t kRows, std::size_t kGroups>
  RECUA_AVX2_INLINE void score_groups(const float* q, std::size_t head_dim, const std::byte* group,
                                      std::ptrdiff_t offset, float* scores,
                                      std::size_t scores_stride) {
    __m256 low[kRows][kGroups];
    __m256 high[kRows][kGroups];
#pragma GCC unroll 6
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) {
        low[r][g] = _mm256_setzero_ps();
        high[r][g] = _mm256_setzero_ps();
      }
    }
    if constexpr (is_float(kType)) {
      constexpr std::size_t kBytes = kKeyGroup * float_bytes(kType);
      for (std::size_t d = 0; d < head_dim; ++d) {
#pragma GCC unroll 4
        for (std::size_t g = 0; g < kGroups; ++g) {
          const std::byte* const at =
              group + g * kKeyGroup * cached_row_bytes(kType, head_dim) + d * kBytes;
          _mm_prefetch(reinterpret_cast<const char*>(at + offset), _MM_HINT_T0);
          const Pair key = widen_floats<kType>(at);
#pragma GCC unroll 6
          for (std::size_t r = 0; r < kRows; ++r) {
            const __m256 x = _mm256_broadcast_ss(q + r * head_dim + d);
            low[r][g] = _mm256_fmadd_ps(x, key.low, low[r][g]);
            high[r][g] = _mm256_fmadd_ps(x, key.high, high[r][g]);
          }
        }
      }
    } else {
      static_assert(kGroups == 1);
      constexpr int kHalves = kType == DataType::kQ4_0 ? 2 : 1;
      constexpr std::size_t kQuantRows = 32 / kHalves;
      for (std::size_t d = 0; d < head_dim; d += 32) {
        const std::byte* const block = group + d / 32 * kKeyGroup * quant_block_bytes(kType);
        const Pair scale = widen_floats<DataType::kF16>(block);
        for (int half = 0; half < kHalves; ++half) {
          const float* const x_block = q + d + 16 * static_cast<std::size_t>(half);
          for (std::size_t i = 0; i < kQuantRows; ++i) {
            const std::byte* const at = block + (2 + i) * kKeyGroup;
            _mm_prefetch(reinterpret_cast<const char*>(at + offset), _MM_HINT_T0);
            const Pair key = widen_quants<kType>(at, 4 * half, scale);
#pragma GCC unroll 6
            for (std::size_t r = 0; r < kRows; ++r) {
              const __m256 x = _mm256_broadcast_ss(x_block + r * head_dim + i);
              low[r][0] = _mm256_fmadd_ps(x, key.low, low[r][0]);
              high[r][0] = _mm256_fmadd_ps(x, key.high, high[r][0]);
            }
          }
        }
      }
    }
#pragma GCC unroll 6
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (std::size_t g = 0; g < kGroups; ++g) {
        _mm256_storeu_ps(scores + r * scores_stride + g * kKeyGroup, low[r][g]);
        _mm256_storeu_ps(scores + r * scores_stride + g * kKeyGroup + 8, high[r][g]);
      }
    }
  }

  // out[r][d .. d + 8 kVectors) += p[r] . values, for the elements from d on, which is a multiple
  // of 8 kVectors; for quants kVectors is even.
  template <DataType kType, std::size_t kRows, std::size_t kVectors>
  RECUA_AVX2_INLINE void add_values(const float* p, std::size_t p_stride, const ValueRun& values,
                                    std::size_t d, float* out) {
    __m256 sum[kRows][kVectors];
#pragma GCC unroll 6
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm256_loadu_ps(out + r * values.head_dim + d + 8 * v);
      }
    }
    const std::size_t row_bytes = cached_row_bytes(kType, values.head_dim);
    const std::byte* at = values.data + cached_row_bytes(kType, d);
    // What comes next is asked for from its begin to its end, whatever the order of use here.
    const std::size_t ahead_step = row_bytes * 8 * kVectors / values.head_dim;
    const std::byte* ahead = values.next == nullptr
                                 ? at
                                 : values.next + d * row_bytes / values.head_dim * values.n_tokens;
    for (std::size_t j = 0; j < values.n_tokens; ++j, at += row_bytes) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      ahead += ahead_step;
      __m256 value[kVectors];
      if constexpr (kType == DataType::kF32) {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v) {
          value[v] = _mm256_loadu_ps(reinterpret_cast<const float*>(at) + 8 * v);
        }
      } else if constexpr (kType == DataType::kF16) {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v) value[v] = _mm256_cvtph_ps(load128(at + 16 * v));
      } else {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; v += 2) {
          const std::size_t i = d % 32 + 8 * v;  // Within the row's block of d.
          const std::byte* const block = at + i / 32 * quant_block_bytes(kType);
          const __m256 scale =
              _mm256_set1_ps(load_f16(reinterpret_cast<const std::uint8_t*>(block)));
          const std::size_t row = kType == DataType::kQ4_0 ? 0 : i % 32;
          const Pair pair =
              widen_quants<kType>(block + 2 + row, i % 32 < 16 ? 0 : 4, {scale, scale});
          value[v] = pair.low;
          value[v + 1] = pair.high;
        }
      }
#pragma GCC unroll 6
      for (std::size_t r = 0; r < kRows; ++r) {
        const __m256 weight = _mm256_broadcast_ss(p + r * p_stride + j);
#pragma GCC unroll 8
        for (std::size_t v = 0; v < kVectors; ++v) {
          sum[r][v] = _mm256_fmadd_ps(weight, value[v], sum[r][v]);
        }
      }
    }
#pragma GCC unroll 6
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kVectors; ++v) {
        _mm256_storeu_ps(out + r * values.head_dim + d + 8 * v, sum[r][v]);
      }
    }
  }

  template <DataType kType, std::size_t kRows>
  static void values_of(const float* p, std::size_t p_stride, const ValueRun& values, float* out) {
    std::size_t d = 0;
    if constexpr (kRows == 1) {
      for (; d + 64 <= values.head_dim; d += 64) {
        add_values<kType, kRows, 8>(p, p_stride, values, d, out);
      }
    }
    if constexpr (kRows <= 3) {
      for (; d + 32 <= values.head_dim; d += 32) {
        add_values<kType, kRows, 4>(p, p_stride, values, d, out);
      }
    }
    for (; d + 16 <= values.head_dim; d += 16) {
      add_values<kType, kRows, 2>(p, p_stride, values, d, out);
    }
    if constexpr (is_float(kType)) {
      for (; d + 8 <= values.head_dim; d += 8) {
        add_values<kType, kRows, 1>(p, p_stride, values, d, out);
      }
    }
  }
};

}  // namespace

void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride) {
  AttentionFrame<Tiles>::scores(q, n_rows, keys, scores, scores_stride);
}

void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out) {
  if (values.head_dim % 8 != 0) {
    return scalar::attention_values(p, p_stride, n_rows, values, out);
  }
  AttentionFrame<Tiles>::values(p, p_stride, n_rows, values, out);
}

}  // namespace recua::kernels::avx2
