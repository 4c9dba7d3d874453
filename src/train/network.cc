// Memory and the forward pass. The backward pass is in network_backward.cc.
#include "train/network.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "base/check.h"
#include "train/cross_entropy.h"
#include "train/linear.h"
#include "train/norm.h"
#include "train/row_ops.h"

namespace recua::train {
namespace {

// The logits of these many floats (16 MiB) are in memory at a time: few enough for a large
// vocabulary, and enough rows for the product.
constexpr std::size_t kLogitFloats = std::size_t{4} << 20;

std::size_t logit_rows(const ModelShape& shape, std::size_t rows_max) {
  const std::size_t fitting = std::max<std::size_t>(64, kLogitFloats / shape.hp.vocab_size);
  return std::min(rows_max, fitting);
}

}  // namespace

std::size_t network_bytes(const ModelShape& shape, const NetworkLimits& limits,
                          std::size_t n_threads, const LoraModel* lora) {
  const model::HyperParams& hp = shape.hp;
  const std::size_t q = std::size_t{hp.n_heads} * hp.head_dim;
  const std::size_t kv = std::size_t{hp.n_kv_heads} * hp.head_dim;
  const std::size_t state = 3 * std::size_t{hp.hidden_size} + 2 * q + 2 * kv +
                            (shape.qk_norm ? q + kv : 0) + 3 * std::size_t{hp.ffn_size};
  const std::size_t backward = 2 * std::size_t{hp.hidden_size} + hp.ffn_size + 2 * q + 2 * kv;
  const std::size_t per_row = (std::size_t{hp.n_layers} + 2) * hp.hidden_size + backward +
                              state * (limits.recompute ? 1 : hp.n_layers) + hp.n_heads + 2;
  std::size_t floats = per_row * limits.rows_max +
                       logit_rows(shape, limits.rows_max) * hp.vocab_size +
                       attention_scratch_floats(n_threads, limits.sequence_max);
  if (lora != nullptr) {
    floats += frozen_scratch_floats(lora->n_in_max()) + 2 * limits.rows_max * lora->options().rank;
  }
  return floats * sizeof(float);
}

Network::Network(Team& team, const ModelShape& shape, const NetworkLimits& limits,
                 const LoraModel* lora)
    : team_(&team),
      shape_(shape),
      limits_(limits),
      layout_(shape),
      lora_(lora),
      rope_(shape.hp, shape.rope_divisors, limits.sequence_max),
      hidden_(shape.hp.hidden_size),
      q_size_(std::size_t{shape.hp.n_heads} * shape.hp.head_dim),
      kv_size_(std::size_t{shape.hp.n_kv_heads} * shape.hp.head_dim),
      logit_rows_(logit_rows(shape, limits.rows_max)) {}

Result<Network> Network::create(Team& team, const ModelShape& shape, const NetworkLimits& limits,
                                const LoraModel* lora) {
  RECUA_CHECK(limits.rows_max > 0 && limits.sequence_max > 0);
  RECUA_RETURN_IF_ERROR(check_trainable(shape));
  Network network(team, shape, limits, lora);
  if (auto allocated = network.allocate(); !allocated.ok()) {
    return std::move(allocated).error().within(
        fmt::format("{} rows of activations need {} MiB (a smaller batch or context needs less)",
                    limits.rows_max, network_bytes(shape, limits, team.n_threads(), lora) >> 20U));
  }
  return network;
}

Result<void> Network::allocate() {
  const std::size_t rows = limits_.rows_max;
  const std::size_t ffn = shape_.hp.ffn_size;
  const std::size_t n_layers = shape_.hp.n_layers;
  const auto make = [](FloatBuffer& buffer, std::size_t n) -> Result<void> {
    RECUA_ASSIGN_OR_RETURN(buffer, FloatBuffer::allocate(n));
    return ok();
  };
  RECUA_RETURN_IF_ERROR(make(inputs_, (n_layers + 1) * rows * hidden_));
  states_.resize(limits_.recompute ? 1 : n_layers);
  for (LayerState& state : states_) {
    RECUA_RETURN_IF_ERROR(make(state.normed, rows * hidden_));
    if (shape_.qk_norm) {
      RECUA_RETURN_IF_ERROR(make(state.q_raw, rows * q_size_));
      RECUA_RETURN_IF_ERROR(make(state.k_raw, rows * kv_size_));
    }
    RECUA_RETURN_IF_ERROR(make(state.q, rows * q_size_));
    RECUA_RETURN_IF_ERROR(make(state.k, rows * kv_size_));
    RECUA_RETURN_IF_ERROR(make(state.v, rows * kv_size_));
    RECUA_RETURN_IF_ERROR(make(state.attended, rows * q_size_));
    RECUA_RETURN_IF_ERROR(make(state.x_mid, rows * hidden_));
    RECUA_RETURN_IF_ERROR(make(state.ffn_normed, rows * hidden_));
    RECUA_RETURN_IF_ERROR(make(state.gate, rows * ffn));
    RECUA_RETURN_IF_ERROR(make(state.up, rows * ffn));
    RECUA_RETURN_IF_ERROR(make(state.act, rows * ffn));
  }
  RECUA_RETURN_IF_ERROR(make(final_normed_, rows * hidden_));
  RECUA_RETURN_IF_ERROR(make(logits_, logit_rows_ * shape_.hp.vocab_size));
  RECUA_RETURN_IF_ERROR(make(losses_, rows));
  RECUA_RETURN_IF_ERROR(make(dx_, rows * hidden_));
  RECUA_RETURN_IF_ERROR(make(d_normed_, rows * hidden_));
  RECUA_RETURN_IF_ERROR(make(d_act_, rows * ffn));
  RECUA_RETURN_IF_ERROR(make(d_attended_, rows * q_size_));
  RECUA_RETURN_IF_ERROR(make(dq_, rows * q_size_));
  RECUA_RETURN_IF_ERROR(make(dk_, rows * kv_size_));
  RECUA_RETURN_IF_ERROR(make(dv_, rows * kv_size_));
  if (lora_ != nullptr) {
    RECUA_RETURN_IF_ERROR(make(frozen_scratch_, frozen_scratch_floats(lora_->n_in_max())));
    RECUA_RETURN_IF_ERROR(make(lora_scratch_, 2 * rows * lora_->options().rank));
  }
  RECUA_RETURN_IF_ERROR(make(norm_scales_, rows * std::max<std::size_t>(1, shape_.hp.n_heads)));
  return make(attention_scratch_,
              attention_scratch_floats(team_->n_threads(), limits_.sequence_max));
}

AttentionShape Network::attention_shape(const Batch& batch) const {
  return {.sequences = batch.sequences,
          .n_heads = shape_.hp.n_heads,
          .n_kv_heads = shape_.hp.n_kv_heads,
          .head_dim = shape_.hp.head_dim,
          .window = shape_.hp.sliding_window};
}

void Network::run_layer(const Batch& batch, const float* params, std::size_t index) {
  const model::HyperParams& hp = shape_.hp;
  const LayerOffsets& at = layout_.layer(index);
  LayerState& s = state(index);
  const float* const x = input(index);
  float* const out = input(index + 1);
  const std::size_t n = n_rows_;

  // A tensor of q or k: product, bias, norm of each head, rotation.
  const auto project = [&](std::size_t w, std::size_t bias, std::size_t norm, std::size_t n_heads,
                           FloatBuffer& raw, FloatBuffer& to) {
    const std::size_t size = n_heads * hp.head_dim;
    float* const product = norm == LayerOffsets::kNone ? to.data() : raw.data();
    multiply({n, hidden_, size}, s.normed.data(), params, w, product);
    if (bias != LayerOffsets::kNone) add_bias(*team_, n, size, vector(params, bias), product);
    if (norm != LayerOffsets::kNone) {
      rms_norm(*team_, {n * n_heads, hp.head_dim, hp.rms_eps}, product, vector(params, norm),
               to.data());
    }
    rope_.apply(*team_, batch.positions, n_heads, RopeTable::Turn::kForward, to.data());
  };
  rms_norm(*team_, {n, hidden_, hp.rms_eps}, x, vector(params, at.attn_norm), s.normed.data());
  project(at.q, at.q_bias, at.q_norm, hp.n_heads, s.q_raw, s.q);
  project(at.k, at.k_bias, at.k_norm, hp.n_kv_heads, s.k_raw, s.k);
  multiply({n, hidden_, kv_size_}, s.normed.data(), params, at.v, s.v.data());
  if (at.v_bias != LayerOffsets::kNone) {
    add_bias(*team_, n, kv_size_, vector(params, at.v_bias), s.v.data());
  }
  attention(*team_, attention_shape(batch), s.q.data(), s.k.data(), s.v.data(), s.attended.data(),
            attention_scratch_.span());
  multiply({n, q_size_, hidden_}, s.attended.data(), params, at.attn_output, s.x_mid.data());
  add(*team_, n * hidden_, x, s.x_mid.data(), s.x_mid.data());

  rms_norm(*team_, {n, hidden_, hp.rms_eps}, s.x_mid.data(), vector(params, at.ffn_norm),
           s.ffn_normed.data());
  multiply({n, hidden_, hp.ffn_size}, s.ffn_normed.data(), params, at.gate, s.gate.data());
  multiply({n, hidden_, hp.ffn_size}, s.ffn_normed.data(), params, at.up, s.up.data());
  silu_mul(*team_, n * hp.ffn_size, s.gate.data(), s.up.data(), s.act.data());
  multiply({n, hp.ffn_size, hidden_}, s.act.data(), params, at.down, out);
  add(*team_, n * hidden_, s.x_mid.data(), out, out);
}

void Network::forward(const Batch& batch, std::span<const float> params) {
  RECUA_CHECK(params.size() == layout().n_params());
  RECUA_CHECK(batch.n_rows() > 0 && batch.n_rows() <= limits_.rows_max);
  for (const SequenceRows& rows : batch.sequences) RECUA_CHECK(rows.n <= limits_.sequence_max);
  for (const std::int32_t id : batch.inputs) {
    RECUA_CHECK(id >= 0 && static_cast<std::size_t>(id) < shape_.hp.vocab_size);
  }
  n_rows_ = batch.n_rows();
  embed_rows(batch, params.data());
  for (std::size_t i = 0; i < shape_.hp.n_layers; ++i) run_layer(batch, params.data(), i);
  rms_norm(*team_, {n_rows_, hidden_, shape_.hp.rms_eps}, input(shape_.hp.n_layers),
           vector(params.data(), layout_.output_norm()), final_normed_.data());
}

double Network::loss(const Batch& batch, std::span<const float> params) {
  forward(batch, params);
  const std::size_t vocab_size = shape_.hp.vocab_size;
  for (std::size_t begin = 0; begin < n_rows_; begin += logit_rows_) {
    const std::size_t n = std::min(logit_rows_, n_rows_ - begin);
    multiply({n, hidden_, vocab_size}, final_normed_.data() + begin * hidden_, params.data(),
             layout_.output(), logits_.data());
    const Targets targets{.ids = std::span(batch.targets).subspan(begin, n),
                          .counts = std::span(batch.counts).subspan(begin, n)};
    cross_entropy(*team_, targets, vocab_size, logits_.data(), losses_.span().subspan(begin, n));
  }
  const std::span<const float> losses = losses_.span().first(n_rows_);
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

void Network::logits(const Batch& batch, std::span<const float> params, std::span<float> out) {
  forward(batch, params);
  RECUA_CHECK(out.size() == n_rows_ * shape_.hp.vocab_size);
  multiply({n_rows_, hidden_, shape_.hp.vocab_size}, final_normed_.data(), params.data(),
           layout_.output(), out.data());
}

}  // namespace recua::train
