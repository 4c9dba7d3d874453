// A unit of work is one sequence and one key head: it alone adds to that head's dk and dv, in the
// order of its query heads and blocks.
#include "train/attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace recua::train {
namespace {

constexpr std::size_t kQueries = 64;

// Some queries of one head and the positions that any of them sees.
struct Block {
  std::size_t row = 0;  // Of the first query, among all rows.
  std::size_t n = 0;
  std::size_t key_row = 0;  // Of the first position seen.
  std::size_t n_keys = 0;
  std::size_t before = 0;  // Positions in [key_row, row).
};

Block block_at(const SequenceRows& sequence, std::size_t begin, std::size_t window) {
  const std::size_t n = std::min(kQueries, sequence.n - begin);
  const std::size_t first = window > 0 && begin + 1 > window ? begin + 1 - window : 0;
  return {.row = sequence.begin + begin,
          .n = n,
          .key_row = sequence.begin + first,
          .n_keys = begin + n - first,
          .before = begin - first};
}

struct Heads {
  std::size_t q_stride = 0;
  std::size_t kv_stride = 0;
  std::size_t head_dim = 0;
  std::size_t window = 0;
};

// p[i, j]: the probabilities of a block, zero where a query does not see.
void probabilities(const kernels::KernelTable& kernels, const Heads& heads, const Block& block,
                   const float* q, const float* k, float* gemm_scratch, float* p) {
  kernels.gemm({.a = {.data = q, .stride = heads.q_stride},
                .b = {.data = k, .stride = heads.kv_stride, .transposed = true},
                .c = p,
                .c_stride = block.n_keys,
                .m = block.n,
                .n = block.n_keys,
                .k = heads.head_dim,
                .scratch = gemm_scratch});
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(heads.head_dim)));
  for (std::size_t i = 0; i < block.n; ++i) {
    float* const row = p + i * block.n_keys;
    const std::size_t end = block.before + i + 1;
    const std::size_t first = heads.window > 0 && end > heads.window ? end - heads.window : 0;
    for (std::size_t j = first; j < end; ++j) row[j] *= scale;
    const kernels::SoftmaxPart part = kernels.softmax_part(row + first, end - first);
    const float norm = 1.0F / part.sum;
    for (std::size_t j = first; j < end; ++j) row[j] *= norm;
    std::fill(row, row + first, 0.0F);
    std::fill(row + end, row + block.n_keys, 0.0F);
  }
}

// dp becomes the gradient of the scores: ds = p (dp - sum(p dp)) / sqrt(head_dim).
void softmax_backward(const Heads& heads, const Block& block, const float* p, float* dp) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(heads.head_dim)));
  for (std::size_t i = 0; i < block.n; ++i) {
    const float* const row = p + i * block.n_keys;
    float* const d_row = dp + i * block.n_keys;
    double sum = 0.0;
    for (std::size_t j = 0; j < block.n_keys; ++j) {
      sum += static_cast<double>(row[j]) * static_cast<double>(d_row[j]);
    }
    const auto mean = static_cast<float>(sum);
    for (std::size_t j = 0; j < block.n_keys; ++j) d_row[j] = row[j] * (d_row[j] - mean) * scale;
  }
}

// fn(block, query head, thread, unit's key head) for every block, each unit on one thread.
template <class Begin, class Fn>
void for_blocks(Team& team, const AttentionShape& shape, Begin&& begin_unit, Fn&& fn) {
  const std::size_t n_group = shape.n_heads / shape.n_kv_heads;
  team.for_each(shape.sequences.size() * shape.n_kv_heads,
                [&](std::size_t unit, std::size_t thread) {
                  const SequenceRows& sequence = shape.sequences[unit / shape.n_kv_heads];
                  const std::size_t kv_head = unit % shape.n_kv_heads;
                  begin_unit(sequence, kv_head);
                  for (std::size_t h = kv_head * n_group; h < (kv_head + 1) * n_group; ++h) {
                    for (std::size_t begin = 0; begin < sequence.n; begin += kQueries) {
                      fn(block_at(sequence, begin, shape.window), h, kv_head, thread);
                    }
                  }
                });
}

Heads heads_of(const AttentionShape& shape) {
  RECUA_CHECK(shape.n_kv_heads > 0 && shape.n_heads % shape.n_kv_heads == 0);
  return {.q_stride = shape.n_heads * shape.head_dim,
          .kv_stride = shape.n_kv_heads * shape.head_dim,
          .head_dim = shape.head_dim,
          .window = shape.window};
}

std::size_t longest(const AttentionShape& shape) {
  std::size_t n = 0;
  for (const SequenceRows& sequence : shape.sequences) n = std::max(n, sequence.n);
  return n;
}

}  // namespace

std::size_t attention_scratch_floats(std::size_t n_threads, std::size_t n_max) {
  return n_threads * 2 * kQueries * n_max;
}

void attention(Team& team, const AttentionShape& shape, const float* q, const float* k,
               const float* v, float* out, std::span<float> scratch) {
  const Heads heads = heads_of(shape);
  const std::size_t per_thread = scratch.size() / team.n_threads();
  RECUA_CHECK(per_thread >= attention_scratch_floats(1, longest(shape)));
  for_blocks(
      team, shape, [](const SequenceRows&, std::size_t) {},
      [&](const Block& block, std::size_t head, std::size_t kv_head, std::size_t thread) {
        float* const p = scratch.data() + thread * per_thread;
        const std::size_t q_at = block.row * heads.q_stride + head * heads.head_dim;
        const std::size_t kv_at = block.key_row * heads.kv_stride + kv_head * heads.head_dim;
        probabilities(team.kernels(), heads, block, q + q_at, k + kv_at, team.gemm_scratch(thread),
                      p);
        team.kernels().gemm({.a = {.data = p, .stride = block.n_keys},
                             .b = {.data = v + kv_at, .stride = heads.kv_stride},
                             .c = out + q_at,
                             .c_stride = heads.q_stride,
                             .m = block.n,
                             .n = heads.head_dim,
                             .k = block.n_keys,
                             .scratch = team.gemm_scratch(thread)});
      });
}

void attention_backward(Team& team, const AttentionShape& shape, const float* q, const float* k,
                        const float* v, const float* d_out, const AttentionGradients& gradients,
                        std::span<float> scratch) {
  const Heads heads = heads_of(shape);
  const std::size_t per_thread = scratch.size() / team.n_threads();
  RECUA_CHECK(per_thread >= attention_scratch_floats(1, longest(shape)));
  const auto clear_head = [&](const SequenceRows& sequence, std::size_t kv_head) {
    for (std::size_t r = sequence.begin; r < sequence.begin + sequence.n; ++r) {
      const std::size_t at = r * heads.kv_stride + kv_head * heads.head_dim;
      std::fill_n(gradients.dk + at, heads.head_dim, 0.0F);
      std::fill_n(gradients.dv + at, heads.head_dim, 0.0F);
    }
  };
  for_blocks(
      team, shape, clear_head,
      [&](const Block& block, std::size_t head, std::size_t kv_head, std::size_t thread) {
        float* const p = scratch.data() + thread * per_thread;
        float* const ds = p + block.n * block.n_keys;
        float* const gemm_scratch = team.gemm_scratch(thread);
        const auto gemm = team.kernels().gemm;
        const std::size_t q_at = block.row * heads.q_stride + head * heads.head_dim;
        const std::size_t kv_at = block.key_row * heads.kv_stride + kv_head * heads.head_dim;
        probabilities(team.kernels(), heads, block, q + q_at, k + kv_at, gemm_scratch, p);
        gemm({.a = {.data = p, .stride = block.n_keys, .transposed = true},  // dv += p^T d_out
              .b = {.data = d_out + q_at, .stride = heads.q_stride},
              .c = gradients.dv + kv_at,
              .c_stride = heads.kv_stride,
              .m = block.n_keys,
              .n = heads.head_dim,
              .k = block.n,
              .accumulate = true,
              .scratch = gemm_scratch});
        gemm({.a = {.data = d_out + q_at, .stride = heads.q_stride},  // dp = d_out v^T
              .b = {.data = v + kv_at, .stride = heads.kv_stride, .transposed = true},
              .c = ds,
              .c_stride = block.n_keys,
              .m = block.n,
              .n = block.n_keys,
              .k = heads.head_dim,
              .scratch = gemm_scratch});
        softmax_backward(heads, block, p, ds);
        gemm({.a = {.data = ds, .stride = block.n_keys},  // dq = ds k
              .b = {.data = k + kv_at, .stride = heads.kv_stride},
              .c = gradients.dq + q_at,
              .c_stride = heads.q_stride,
              .m = block.n,
              .n = heads.head_dim,
              .k = block.n_keys,
              .scratch = gemm_scratch});
        gemm({.a = {.data = ds, .stride = block.n_keys, .transposed = true},  // dk += ds^T q
              .b = {.data = q + q_at, .stride = heads.q_stride},
              .c = gradients.dk + kv_at,
              .c_stride = heads.kv_stride,
              .m = block.n_keys,
              .n = heads.head_dim,
              .k = block.n,
              .accumulate = true,
              .scratch = gemm_scratch});
      });
}

}  // namespace recua::train
