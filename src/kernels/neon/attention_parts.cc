// Softmax of a piece, the merging of pieces, and the widening of what is cached.
#include "kernels/attention.h"
#include "kernels/neon/widen.h"

namespace recua::kernels::neon {

using quant::DataType;

SoftmaxPart softmax_part(float* scores, std::size_t n) {
  const std::size_t n_whole = n / 4 * 4;
  float32x4_t maxima = vdupq_n_f32(scores[0]);
  for (std::size_t j = 0; j < n_whole; j += 4) maxima = larger(vld1q_f32(scores + j), maxima);
  for (std::size_t j = n_whole; j < n; ++j) maxima = larger(vdupq_n_f32(scores[j]), maxima);
  const float max = max_lanes(maxima);

  const auto exp_of = [&](float32x4_t score) __attribute__((always_inline)) {
    return exp_or_zero(vsubq_f32(score, vdupq_n_f32(max)));
  };
  float32x4_t sum = vdupq_n_f32(0.0F);
  for (std::size_t j = 0; j < n_whole; j += 4) {
    const float32x4_t e = exp_of(vld1q_f32(scores + j));
    vst1q_f32(scores + j, e);
    sum = vaddq_f32(sum, e);
  }
  if (n_whole < n) {
    const std::size_t n_last = n - n_whole;
    store_first(scores + n_whole, n_last, exp_of(load_first(scores + n_whole, n_last)));
    sum = vaddq_f32(sum, load_first(scores + n_whole, n_last));
  }
  return {max, sum_lanes(sum)};
}

void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running) {
  const bool part_is_smaller = part.max <= running.max;
  const float difference = part_is_smaller ? part.max - running.max : running.max - part.max;
  const float32x4_t scale = exp_or_zero(vdupq_n_f32(difference));
  const float* const small = part_is_smaller ? part_values : out;
  const float* const large = part_is_smaller ? out : part_values;
  std::size_t d = 0;
  for (; d + 4 <= n; d += 4) {
    vst1q_f32(out + d, vfmaq_f32(vld1q_f32(large + d), vld1q_f32(small + d), scale));
  }
  if (d < n) {
    const float32x4_t last =
        vfmaq_f32(load_first(large + d, n - d), load_first(small + d, n - d), scale);
    store_first(out + d, n - d, last);
  }
  const float32x4_t small_sum = vdupq_n_f32(part_is_smaller ? part.sum : running.sum);
  const float32x4_t large_sum = vdupq_n_f32(part_is_smaller ? running.sum : part.sum);
  running.sum = vgetq_lane_f32(vfmaq_f32(large_sum, small_sum, scale), 0);
  if (!part_is_smaller) running.max = part.max;
}

void widen_keys(DataType type, const std::byte* groups, std::size_t n_groups, std::size_t head_dim,
                float* out) {
  if (is_float(type)) return widen_values(type, groups, n_groups * head_dim * kKeyGroup, out);
  const std::size_t n_quant_rows = type == DataType::kQ8_0 ? 32 : 16;
  const std::size_t n_blocks = n_groups * (head_dim / 32);
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const Sixteen scale = widen_floats<DataType::kF16>(groups);
    groups += 2 * kKeyGroup;
    for (std::size_t i = 0; i < n_quant_rows; ++i, groups += kKeyGroup, out += kKeyGroup) {
      if (type == DataType::kQ8_0) {
        store16(out, widen_quants(quants8(groups), scale));
      } else {
        store16(out, widen_quants(low_quants4(groups), scale));
        store16(out + 16 * kKeyGroup, widen_quants(high_quants4(groups), scale));
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
  if (type == DataType::kF16) {
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, load4_f16(values + 2 * i));
    for (; i < n; ++i) out[i] = load_f16(values + 2 * i);
    return;
  }
  for (std::size_t i = 0; i < n; i += 32, out += 32) {
    const Sixteen scale = same16(load_f16(values));
    if (type == DataType::kQ8_0) {
      store16(out, widen_quants(quants8(values + 2), scale));
      store16(out + 16, widen_quants(quants8(values + 18), scale));
      values += 34;
    } else {
      store16(out, widen_quants(low_quants4(values + 2), scale));
      store16(out + 16, widen_quants(high_quants4(values + 2), scale));
      values += 18;
    }
  }
}

}  // namespace recua::kernels::neon
