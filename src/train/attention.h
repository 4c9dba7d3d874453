#pragma once
/// Causal grouped-query attention of whole sequences, forward and backward.
///
///   out_i = sum over j <= i of softmax_j(q_i . k_j / sqrt(head_dim)) v_j
/// (with a window: over the last `window` positions j). Query head h uses key head h / n_group.
///
/// Queries go in blocks of 64, whose probabilities are made anew in the backward pass: memory grows
/// with the context, not with its square (after Dao et al. 2022, "FlashAttention").

#include <cstddef>
#include <span>

#include "train/team.h"

namespace recua::train {

/// The rows of one sequence, positions from 0.
struct SequenceRows {
  std::size_t begin = 0;
  std::size_t n = 0;
};

struct AttentionShape {
  std::span<const SequenceRows> sequences = {};
  std::size_t n_heads = 0;
  std::size_t n_kv_heads = 0;  // Divides n_heads.
  std::size_t head_dim = 0;
  std::size_t window = 0;  // 0: all earlier positions.
};

/// Floats that a team of n_threads needs for sequences of at most n_max.
std::size_t attention_scratch_floats(std::size_t n_threads, std::size_t n_max);

/// q, out: [n_rows, n_heads, head_dim]; k, v: [n_rows, n_kv_heads, head_dim].
void attention(Team& team, const AttentionShape& shape, const float* q, const float* k,
               const float* v, float* out, std::span<float> scratch);

/// Sets dq, dk, dv (of the sequences' rows) from d_out.
struct AttentionGradients {
  float* dq = nullptr;
  float* dk = nullptr;
  float* dv = nullptr;
};
void attention_backward(Team& team, const AttentionShape& shape, const float* q, const float* k,
                        const float* v, const float* d_out, const AttentionGradients& gradients,
                        std::span<float> scratch);

}  // namespace recua::train
