#pragma once
/// The three steps of attention of some query heads over a run of cached tokens (one KV head):
/// scores, softmax, weighted values. The caller cuts the context into runs and merges them.
///
/// Each score depends on its token only, and values are added token by token in ascending order, so
/// where a page ends changes nothing.

#include <cstddef>

namespace recua::kernels {

/// One KV head's keys or values of neighbouring tokens in a page.
struct KvRun {
  const std::byte* data = nullptr;  // head_dim elements of the first token.
  std::size_t token_stride = 0;     // Bytes from token to token.
  std::size_t n_tokens = 0;
  std::size_t head_dim = 0;
  bool is_f16 = true;  // Else f32.
};

/// What is needed to merge runs: Milakov & Gimelshein 2018, "Online normalizer calculation".
struct SoftmaxPart {
  float max = 0.0F;
  float sum = 0.0F;
};

namespace scalar {
/// scores[h * scores_stride + j] = scale * (q[h * head_dim + ...] . keys[j]) for n_heads heads.
/// Variants agree within head_dim * 2^-23 of the sum of absolute products.
void attention_scores(const float* q, std::size_t n_heads, const KvRun& keys, float scale,
                      float* scores, std::size_t scores_stride);

/// scores[j] <- exp(scores[j] - max of all), n >= 1; returns that maximum and the sum of the
/// results. exp is within 2^-21 relative (0 below -87); variants add in another fixed order.
SoftmaxPart softmax_part(float* scores, std::size_t n);

/// out[h * head_dim + d] += sum over j of p[h * p_stride + j] * values[j, d], j ascending, FMA.
void attention_values(const float* p, std::size_t p_stride, std::size_t n_heads,
                      const KvRun& values, float* out);
}  // namespace scalar

namespace avx2 {
void attention_scores(const float* q, std::size_t n_heads, const KvRun& keys, float scale,
                      float* scores, std::size_t scores_stride);
SoftmaxPart softmax_part(float* scores, std::size_t n);
void attention_values(const float* p, std::size_t p_stride, std::size_t n_heads,
                      const KvRun& values, float* out);
}  // namespace avx2

}  // namespace recua::kernels
