#pragma once
/// For tests: small models of each family, and a model's loss in f64 from the papers' formulas.

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "train/batch.h"
#include "train/parameters.h"
#include "train/reference.h"

namespace recua::train::reference {

inline ModelShape tiny_shape(const model::Architecture& arch, bool tied) {
  ModelShape shape;
  shape.hp.architecture = &arch;
  shape.hp.vocab_size = 13;
  shape.hp.n_ctx_train = 16;
  shape.hp.n_layers = 2;
  shape.hp.hidden_size = 8;
  shape.hp.n_heads = 4;
  shape.hp.n_kv_heads = 2;
  shape.hp.head_dim = 4;  // Wider together than hidden_size, as Qwen 3 has it.
  shape.hp.rope_dim = 4;
  shape.hp.ffn_size = 12;
  shape.hp.rms_eps = 1e-3F;
  shape.qkv_bias = arch.qkv_bias == model::Presence::kAlways;
  shape.qk_norm = arch.qk_norm == model::Presence::kAlways;
  shape.tied = tied;
  return shape;
}

inline Example example(std::vector<std::int32_t> tokens, std::vector<std::uint8_t> counts = {}) {
  if (counts.empty()) counts.assign(tokens.size() - 1, 1);
  return {.tokens = std::move(tokens), .counts = std::move(counts)};
}

inline Batch tiny_batch() {
  Batch batch;
  batch.add(example({1, 5, 7, 5, 12, 0}, {1, 0, 1, 1, 1}));
  batch.add(example({3, 3}));
  batch.add(example({9, 2, 11, 4}));
  return batch;
}

inline std::vector<float> random_params(const ParameterLayout& layout, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> params(layout.n_params());
  for (const TensorSpec& tensor : layout.tensors()) {
    for (std::size_t i = 0; i < tensor.size(); ++i) {
      const double deviation = tensor.is_matrix ? 0.4 : 0.2;
      params[tensor.offset + i] =
          static_cast<float>(static_cast<double>(tensor.init_mean) + deviation * rng.normal());
    }
  }
  return params;
}

// The loss in f64, from the papers' formulas.
inline double reference_loss(const ModelShape& shape, const ParameterLayout& layout,
                             const Batch& batch, const Doubles& params) {
  const model::HyperParams& hp = shape.hp;
  const std::size_t n = batch.n_rows();
  const std::size_t hidden = hp.hidden_size;
  const double eps = static_cast<double>(hp.rms_eps);
  const auto tensor = [&](std::size_t at, std::size_t size) {
    const auto begin = params.begin() + static_cast<std::ptrdiff_t>(at);
    return Doubles(begin, begin + static_cast<std::ptrdiff_t>(size));
  };
  const auto product = [&](const Doubles& x, std::size_t at, std::size_t n_in, std::size_t n_out) {
    return linear(x, tensor(at, n_in * n_out), n, n_in, n_out);
  };
  const auto plus = [](Doubles a, const Doubles& b) {
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i % b.size()];
    return a;
  };
  const Rope turn{.kind = hp.architecture->rope,
                  .head_dim = hp.head_dim,
                  .rope_dim = hp.rope_dim,
                  .theta = static_cast<double>(hp.rope_theta)};
  Doubles x;
  for (const std::int32_t id : batch.inputs) {
    const Doubles row = tensor(layout.token_embd() + static_cast<std::size_t>(id) * hidden, hidden);
    x.insert(x.end(), row.begin(), row.end());
  }
  for (std::size_t l = 0; l < hp.n_layers; ++l) {
    const LayerOffsets& at = layout.layer(l);
    const Doubles normed = rms_norm(x, tensor(at.attn_norm, hidden), n, eps);
    const auto project = [&](std::size_t w, std::size_t bias, std::size_t norm,
                             std::size_t n_heads) {
      const std::size_t size = n_heads * hp.head_dim;
      Doubles y = product(normed, w, hidden, size);
      if (bias != LayerOffsets::kNone) y = plus(y, tensor(bias, size));
      if (norm != LayerOffsets::kNone) {
        y = rms_norm(y, tensor(norm, hp.head_dim), n * n_heads, eps);
      }
      return rope(y, turn, batch.positions, n_heads);
    };
    const std::size_t kv_size = std::size_t{hp.n_kv_heads} * hp.head_dim;
    Doubles v = product(normed, at.v, hidden, kv_size);
    if (at.v_bias != LayerOffsets::kNone) v = plus(v, tensor(at.v_bias, kv_size));
    const AttentionShape heads{.sequences = batch.sequences,
                               .n_heads = hp.n_heads,
                               .n_kv_heads = hp.n_kv_heads,
                               .head_dim = hp.head_dim,
                               .window = hp.sliding_window};
    const Doubles attended = attention(heads, project(at.q, at.q_bias, at.q_norm, hp.n_heads),
                                       project(at.k, at.k_bias, at.k_norm, hp.n_kv_heads), v);
    x = plus(x, product(attended, at.attn_output, std::size_t{hp.n_heads} * hp.head_dim, hidden));
    const Doubles ffn_normed = rms_norm(x, tensor(at.ffn_norm, hidden), n, eps);
    const Doubles act = silu_mul(product(ffn_normed, at.gate, hidden, hp.ffn_size),
                                 product(ffn_normed, at.up, hidden, hp.ffn_size));
    x = plus(x, product(act, at.down, hp.ffn_size, hidden));
  }
  x = rms_norm(x, tensor(layout.output_norm(), hidden), n, eps);
  return cross_entropy(product(x, layout.output(), hidden, hp.vocab_size), hp.vocab_size,
                       batch.targets, batch.counts);
}

}  // namespace recua::train::reference
