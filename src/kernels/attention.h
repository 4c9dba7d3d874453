#pragma once
/// The steps of attention of some rows (queries of heads that share a KV head) over cached tokens:
/// scores, softmax, weighted values, and the merging of pieces that were computed apart. The caller
/// cuts the context into pieces and a piece into runs.
///
/// How the cache lies. Keys: groups of kKeyGroup neighbouring tokens, element by element, so that a
/// vector holds one element of many tokens and sums never cross lanes. A group of head_dim
/// elements:
///   F32, F16    [head_dim][kKeyGroup]
///   Q8_0        per 32 elements: F16 scale[kKeyGroup], then i8 [32][kKeyGroup]
///   Q4_0        per 32 elements: F16 scale[kKeyGroup], then u8 [16][kKeyGroup]; byte i holds
///               element i in its low and 16 + i in its high nibble
/// which is as many bytes as the rows of those tokens. Values: rows of the type, token after token.
///
/// All but the exponentials is exact, so the same bits on every instruction set: a stored element
/// is one f32 (scale * quant has at most 19 bits), a score is a chain of FMAs from 0 over ascending
/// elements, a value one over ascending tokens. Where a run ends changes nothing.

#include <cstddef>
#include <cstdint>

#include "quant/data_type.h"

namespace recua::kernels {

/// 16 halves are a vector of 32 bytes, and two of f32.
inline constexpr std::size_t kKeyGroup = 16;

constexpr bool is_cache_type(quant::DataType type) {
  return type == quant::DataType::kF16 || type == quant::DataType::kF32 ||
         type == quant::DataType::kQ8_0 || type == quant::DataType::kQ4_0;
}

/// One KV head's keys of neighbouring tokens.
struct KeyRun {
  const std::byte* data = nullptr;  // The group of the first token.
  std::size_t skip = 0;             // The first token's place in it, < kKeyGroup.
  std::size_t n_tokens = 0;
  std::size_t head_dim = 0;  // A multiple of the type's block size.
  quant::DataType type = quant::DataType::kF16;
  const std::byte* next = nullptr;  // What is read soon after, to be prefetched; or null.
};

/// One KV head's values of neighbouring tokens.
struct ValueRun {
  const std::byte* data = nullptr;  // [n_tokens] rows of head_dim elements.
  std::size_t n_tokens = 0;
  std::size_t head_dim = 0;
  quant::DataType type = quant::DataType::kF16;
  const std::byte* next = nullptr;
};

/// What is needed to merge pieces: Milakov & Gimelshein 2018, "Online normalizer calculation".
struct SoftmaxPart {
  float max = 0.0F;
  float sum = 0.0F;
};

namespace scalar {
/// scores[r * scores_stride + j] = q[r * head_dim + ...] . keys[j] for n_rows rows. Exact.
void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride);

/// scores[j] <- exp(scores[j] - max of all), n >= 1; returns that maximum and the sum of the
/// results. exp is within 2^-21 relative (0 below -87); variants add in another fixed order.
SoftmaxPart softmax_part(float* scores, std::size_t n);

/// out[r * head_dim + d] += sum over j of p[r * p_stride + j] * values[j, d]. Exact.
void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out);

/// out[0..n) and running become those of both pieces: the one with the smaller maximum is scaled
/// by exp of the difference. Within 2^-21 relative of each term.
void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running);

/// n_groups groups of keys as f32 groups [head_dim][kKeyGroup]. Exact.
void widen_keys(quant::DataType type, const std::byte* groups, std::size_t n_groups,
                std::size_t head_dim, float* out);
/// n elements of values as f32; n is a multiple of the block size. Exact.
void widen_values(quant::DataType type, const std::byte* values, std::size_t n, float* out);

/// A row of n elements as it is cached: blocks of Q8_0 (scale: the largest magnitude / 127) or Q4_0
/// (scale: the element of the largest magnitude / -8). Quick, since it is done for every token: the
/// search of quant/quantize.h takes some 50 times as long. What is no number becomes 0, what the
/// scale cannot hold the largest number that it can. Exact.
void cache_q8_0(const float* x, std::size_t n, std::byte* out);
void cache_q4_0(const float* x, std::size_t n, std::byte* out);
}  // namespace scalar

namespace avx2 {
void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride);
SoftmaxPart softmax_part(float* scores, std::size_t n);
void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out);
void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running);
void widen_keys(quant::DataType type, const std::byte* groups, std::size_t n_groups,
                std::size_t head_dim, float* out);
void widen_values(quant::DataType type, const std::byte* values, std::size_t n, float* out);
void cache_q8_0(const float* x, std::size_t n, std::byte* out);
void cache_q4_0(const float* x, std::size_t n, std::byte* out);
}  // namespace avx2

namespace avx512 {
void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride);
SoftmaxPart softmax_part(float* scores, std::size_t n);
void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out);
}  // namespace avx512

namespace neon {
void attention_scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                      std::size_t scores_stride);
SoftmaxPart softmax_part(float* scores, std::size_t n);
void attention_values(const float* p, std::size_t p_stride, std::size_t n_rows,
                      const ValueRun& values, float* out);
void merge_part(const float* part_values, SoftmaxPart part, std::size_t n, float* out,
                SoftmaxPart& running);
void widen_keys(quant::DataType type, const std::byte* groups, std::size_t n_groups,
                std::size_t head_dim, float* out);
void widen_values(quant::DataType type, const std::byte* values, std::size_t n, float* out);
void cache_q8_0(const float* x, std::size_t n, std::byte* out);
void cache_q4_0(const float* x, std::size_t n, std::byte* out);
}  // namespace neon

}  // namespace recua::kernels
