#include "kernels/attention.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "quant/half.h"

namespace recua::kernels::scalar {
namespace {

using quant::DataType;

float f32_at(const std::byte* p) {
  float value = 0.0F;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
float f16_at(const std::byte* p) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, sizeof(bits));
  return quant::f16_to_f32(bits);
}

// Element d of the keys whose blocks have `width` tokens side by side, at place `lane`: a group of
// keys has kKeyGroup, a row of values 1.
float element(DataType type, const std::byte* data, std::size_t d, std::size_t width,
              std::size_t lane) {
  if (type == DataType::kF32) return f32_at(data + 4 * (d * width + lane));
  if (type == DataType::kF16) return f16_at(data + 2 * (d * width + lane));
  const std::byte* const block = data + d / 32 * width * quant::traits(type).block_bytes;
  const float scale = f16_at(block + 2 * lane);
  const std::byte* const quants = block + 2 * width + lane;
  const std::size_t i = d % 32;
  if (type == DataType::kQ8_0) {
    return scale * static_cast<float>(static_cast<std::int8_t>(quants[i * width]));
  }
  const auto byte = std::to_integer<int>(quants[i % 16 * width]);
  return scale * static_cast<float>((i < 16 ? byte & 15 : byte >> 4) - 8);
}

float key(const KeyRun& run, std::size_t token, std::size_t d) {
  const std::size_t place = run.skip + token;
  const std::size_t group_bytes = kKeyGroup * quant::row_bytes(run.type, run.head_dim);
  return element(run.type, run.data + place / kKeyGroup * group_bytes, d, kKeyGroup,
                 place % kKeyGroup);
}

}  // namespace

void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t j = 0; j < keys.n_tokens; ++j) {
      float sum = 0.0F;
      for (std::size_t d = 0; d < keys.head_dim; ++d) {
        sum = std::fmaf(q[r * keys.head_dim + d], key(keys, j, d), sum);
      }
      scores[r * scores_stride + j] = sum;
    }
  }
}

SoftmaxPart softmax_part(float* scores, std::size_t n) {
  SoftmaxPart out{.max = scores[0], .sum = 0.0F};
  for (std::size_t j = 1; j < n; ++j) out.max = scores[j] > out.max ? scores[j] : out.max;
  double sum = 0.0;
  for (std::size_t j = 0; j < n; ++j) {
    scores[j] = scores[j] - out.max < -87.0F ? 0.0F : std::exp(scores[j] - out.max);
    sum += scores[j];
  }
  out.sum = static_cast<float>(sum);
  return out;
}

void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out) {
  const std::size_t row_bytes = quant::row_bytes(values.type, values.head_dim);
  for (std::size_t r = 0; r < n_rows; ++r) {
    float* const row = out + r * values.head_dim;
    for (std::size_t j = 0; j < values.n_tokens; ++j) {
      for (std::size_t d = 0; d < values.head_dim; ++d) {
        const float value = element(values.type, values.data + j * row_bytes, d, 1, 0);
        row[d] = std::fmaf(p[r * p_stride + j], value, row[d]);
      }
    }
  }
}

void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running) {
  if (part.max <= running.max) {
    const float scale = std::exp(part.max - running.max);
    for (std::size_t d = 0; d < n; ++d) out[d] = std::fmaf(part_values[d], scale, out[d]);
    running.sum = std::fmaf(part.sum, scale, running.sum);
  } else {
    const float scale = std::exp(running.max - part.max);
    for (std::size_t d = 0; d < n; ++d) out[d] = std::fmaf(out[d], scale, part_values[d]);
    running = {part.max, std::fmaf(running.sum, scale, part.sum)};
  }
}

void widen_keys(DataType type, const std::byte* groups, std::size_t n_groups, std::size_t head_dim,
                float* out) {
  const std::size_t group_bytes = kKeyGroup * quant::row_bytes(type, head_dim);
  for (std::size_t g = 0; g < n_groups; ++g) {
    for (std::size_t d = 0; d < head_dim; ++d) {
      for (std::size_t lane = 0; lane < kKeyGroup; ++lane) {
        *out++ = element(type, groups + g * group_bytes, d, kKeyGroup, lane);
      }
    }
  }
}

void widen_values(DataType type, const std::byte* values, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = element(type, values, i, 1, 0);
}

}  // namespace recua::kernels::scalar
