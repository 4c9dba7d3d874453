// Scores and weighted values, straight from the cached types.
//
// Both are products of a few rows with 16 columns at a time: scores with 16 tokens of a group of
// keys, values with 16 elements of a row. Per element (or token) four vectors of the cache are
// widened and serve all rows: 4 rows x 4 vectors are 16 sums of 32 registers.
#include "kernels/attention.h"

#include "kernels/neon/widen.h"

namespace recua::kernels::neon {
namespace {

using quant::DataType;

constexpr std::size_t kRowsMax = 4;

constexpr std::size_t float_bytes(DataType type) { return type == DataType::kF32 ? 4 : 2; }
constexpr std::size_t quant_block_bytes(DataType type) { return type == DataType::kQ8_0 ? 34 : 18; }

constexpr std::size_t cached_row_bytes(DataType type, std::size_t head_dim) {
  return is_float(type) ? float_bytes(type) * head_dim : quant_block_bytes(type) * (head_dim / 32);
}

template <std::size_t kRows>
RECUA_NEON_INLINE void multiply_add(Sixteen (&sum)[kRows], const Sixteen& cached, const float* x,
                                    std::size_t x_stride) {
  RECUA_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) {
    const float32x4_t factor = vdupq_n_f32(x[r * x_stride]);
    RECUA_UNROLL
    for (std::size_t v = 0; v < 4; ++v) sum[r].v[v] = vfmaq_f32(sum[r].v[v], factor, cached.v[v]);
  }
}

// Scores of kRows rows with all 16 tokens of a group.
template <DataType kType, std::size_t kRows>
RECUA_NEON_INLINE void score_group(const float* q, std::size_t head_dim, const std::byte* group,
                                   float* scores, std::size_t scores_stride) {
  Sixteen sum[kRows];
  RECUA_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) sum[r] = same16(0.0F);
  if constexpr (is_float(kType)) {
    for (std::size_t d = 0; d < head_dim; ++d) {
      const Sixteen key = widen_floats<kType>(group + d * kKeyGroup * float_bytes(kType));
      multiply_add(sum, key, q + d, head_dim);
    }
  } else {
    for (std::size_t d = 0; d < head_dim; d += 32) {
      const std::byte* const block = group + d / 32 * kKeyGroup * quant_block_bytes(kType);
      const std::byte* const quants = block + 2 * kKeyGroup;
      const Sixteen scale = widen_floats<DataType::kF16>(block);
      for (std::size_t i = 0; i < 32; ++i) {
        const std::byte* const at = quants + (kType == DataType::kQ8_0 ? i : i % 16) * kKeyGroup;
        const int8x16_t key = kType == DataType::kQ8_0 ? quants8(at)
                              : i < 16                 ? low_quants4(at)
                                                       : high_quants4(at);
        multiply_add(sum, widen_quants(key, scale), q + d + i, head_dim);
      }
    }
  }
  RECUA_UNROLL
  for (std::size_t r = 0; r < kRows; ++r) store16(scores + r * scores_stride, sum[r]);
}

template <DataType kType, std::size_t kRows>
void scores_of(const float* q, const KeyRun& keys, float* scores, std::size_t scores_stride) {
  const std::size_t stride = kKeyGroup * cached_row_bytes(kType, keys.head_dim);
  const std::size_t end = keys.skip + keys.n_tokens;  // Counted from the first group's begin.
  const std::byte* group = keys.data;
  for (std::size_t begin = 0; begin < end; begin += kKeyGroup, group += stride) {
    if (begin >= keys.skip && begin + kKeyGroup <= end) {
      score_group<kType, kRows>(q, keys.head_dim, group, scores + (begin - keys.skip),
                                scores_stride);
      continue;
    }
    // One group, of which the run does not have all tokens.
    float all[kRows * kKeyGroup];
    score_group<kType, kRows>(q, keys.head_dim, group, all, kKeyGroup);
    const std::size_t first = begin < keys.skip ? keys.skip - begin : 0;
    const std::size_t last = smaller(end - begin, kKeyGroup);
    for (std::size_t r = 0; r < kRows; ++r) {
      for (std::size_t i = first; i < last; ++i) {
        scores[r * scores_stride + (begin + i - keys.skip)] = all[r * kKeyGroup + i];
      }
    }
  }
}

// Elements d .. d + 15 of a row of values; d is a multiple of 16.
template <DataType kType>
RECUA_NEON_INLINE Sixteen value16(const std::byte* row, std::size_t d) {
  if constexpr (is_float(kType)) {
    return widen_floats<kType>(row + d * float_bytes(kType));
  } else {
    const std::byte* const block = row + d / 32 * quant_block_bytes(kType);
    const Sixteen scale = same16(load_f16(block));
    if constexpr (kType == DataType::kQ8_0) {
      return widen_quants(quants8(block + 2 + d % 32), scale);
    } else {
      return widen_quants(d % 32 == 0 ? low_quants4(block + 2) : high_quants4(block + 2), scale);
    }
  }
}

template <DataType kType, std::size_t kRows>
void values_of(const float* p, std::size_t p_stride, const ValueRun& values, float* out) {
  const std::size_t stride = cached_row_bytes(kType, values.head_dim);
  for (std::size_t d = 0; d < values.head_dim; d += 16) {
    Sixteen sum[kRows];
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) sum[r] = load16_f32(out + r * values.head_dim + d);
    const std::byte* row = values.data;
    for (std::size_t j = 0; j < values.n_tokens; ++j, row += stride) {
      multiply_add(sum, value16<kType>(row, d), p + j, p_stride);
    }
    RECUA_UNROLL
    for (std::size_t r = 0; r < kRows; ++r) store16(out + r * values.head_dim + d, sum[r]);
  }
}

// fn.operator()<kRows>(first row) for all rows, as many at once as there are sums for.
template <class Fn>
RECUA_NEON_INLINE void by_rows(std::size_t n_rows, Fn&& fn) {
  std::size_t r = 0;
  for (; r + kRowsMax <= n_rows; r += kRowsMax) fn.template operator()<kRowsMax>(r);
  if (n_rows - r == 3) return fn.template operator()<3>(r);
  if (n_rows - r == 2) return fn.template operator()<2>(r);
  if (n_rows - r == 1) return fn.template operator()<1>(r);
}

template <DataType kType>
void scores_of_all(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                   std::size_t scores_stride) {
  by_rows(n_rows, [&]<std::size_t kRows>(std::size_t r) {
    scores_of<kType, kRows>(q + r * keys.head_dim, keys, scores + r * scores_stride, scores_stride);
  });
}

template <DataType kType>
void values_of_all(const float* p, std::size_t p_stride, std::size_t n_rows, const ValueRun& values,
                   float* out) {
  by_rows(n_rows, [&]<std::size_t kRows>(std::size_t r) {
    values_of<kType, kRows>(p + r * p_stride, p_stride, values, out + r * values.head_dim);
  });
}

}  // namespace

void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride) {
  switch (keys.type) {
    case DataType::kF32:
      return scores_of_all<DataType::kF32>(q, n_rows, keys, scores, scores_stride);
    case DataType::kQ8_0:
      return scores_of_all<DataType::kQ8_0>(q, n_rows, keys, scores, scores_stride);
    case DataType::kQ4_0:
      return scores_of_all<DataType::kQ4_0>(q, n_rows, keys, scores, scores_stride);
    default:
      return scores_of_all<DataType::kF16>(q, n_rows, keys, scores, scores_stride);
  }
}

void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out) {
  if (values.head_dim % 16 != 0) {
    return scalar::attention_values(p, p_stride, n_rows, values, out);
  }
  switch (values.type) {
    case DataType::kF32:
      return values_of_all<DataType::kF32>(p, p_stride, n_rows, values, out);
    case DataType::kQ8_0:
      return values_of_all<DataType::kQ8_0>(p, p_stride, n_rows, values, out);
    case DataType::kQ4_0:
      return values_of_all<DataType::kQ4_0>(p, p_stride, n_rows, values, out);
    default:
      return values_of_all<DataType::kF16>(p, p_stride, n_rows, values, out);
  }
}

}  // namespace recua::kernels::neon
