#include "kernels/attention.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "quant/half.h"

namespace recua::kernels::scalar {
namespace {

float element(const KvRun& run, std::size_t token, std::size_t d) {
  const std::byte* row = run.data + token * run.token_stride;
  if (!run.is_f16) {
    float value = 0.0F;
    std::memcpy(&value, row + 4 * d, sizeof(value));
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, row + 2 * d, sizeof(bits));
  return quant::f16_to_f32(bits);
}

}  // namespace

void attention_scores(const float* q, std::size_t n_heads, const KvRun& keys, float scale,
                      float* scores, std::size_t scores_stride) {
  for (std::size_t h = 0; h < n_heads; ++h) {
    for (std::size_t j = 0; j < keys.n_tokens; ++j) {
      double sum = 0.0;
      for (std::size_t d = 0; d < keys.head_dim; ++d) {
        sum += static_cast<double>(q[h * keys.head_dim + d]) * element(keys, j, d);
      }
      scores[h * scores_stride + j] = scale * static_cast<float>(sum);
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

void attention_values(const float* p, std::size_t p_stride, std::size_t n_heads,
                      const KvRun& values, float* out) {
  for (std::size_t h = 0; h < n_heads; ++h) {
    float* row = out + h * values.head_dim;
    for (std::size_t j = 0; j < values.n_tokens; ++j) {
      for (std::size_t d = 0; d < values.head_dim; ++d) {
        row[d] = std::fmaf(p[h * p_stride + j], element(values, j, d), row[d]);
      }
    }
  }
}

}  // namespace recua::kernels::scalar
