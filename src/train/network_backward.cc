// dx_ holds the gradient of the residual stream, from the last layer's output down to the
// embedding; each part of a layer adds what reaches its input.
#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "train/cross_entropy.h"
#include "train/linear.h"
#include "train/network.h"
#include "train/norm.h"
#include "train/row_ops.h"

namespace recua::train {

double Network::loss_and_gradient(const Batch& batch, std::span<const float> params, float scale,
                                  std::span<float> gradients, const GradientHook& hook) {
  RECUA_CHECK(gradients.size() == layout().n_params());
  forward(batch, params);
  const std::size_t vocab_size = shape_.hp.vocab_size;
  for (std::size_t begin = 0; begin < n_rows_; begin += logit_rows_) {
    const std::size_t n = std::min(logit_rows_, n_rows_ - begin);
    const LinearShape shape{.n_rows = n, .n_in = hidden_, .n_out = vocab_size};
    const float* const normed = final_normed_.data() + begin * hidden_;
    multiply(shape, normed, params.data(), layout_.output(), logits_.data());
    const Targets targets{.ids = std::span(batch.targets).subspan(begin, n),
                          .counts = std::span(batch.counts).subspan(begin, n)};
    cross_entropy_backward(*team_, targets, vocab_size, scale, logits_.data(),
                           losses_.span().subspan(begin, n));
    multiply_backward(shape, logits_.data(), normed, params.data(), layout_.output(),
                      d_normed_.data() + begin * hidden_, false, gradients.data());
  }
  rms_norm_backward(*team_, {n_rows_, hidden_, shape_.hp.rms_eps}, input(shape_.hp.n_layers),
                    vector(params.data(), layout_.output_norm()), d_normed_.data(),
                    norm_scales_.data(), dx_.data(), false,
                    vector_gradient(gradients.data(), layout_.output_norm()));
  if (hook) hook(layout_.output_norm());
  for (std::size_t i = shape_.hp.n_layers; i-- > 0;) {
    backward_layer(batch, params.data(), i, gradients.data());
    if (hook) hook(layout_.layer(i).attn_norm);
  }
  if (lora_ == nullptr) {
    embed_backward(*team_, batch.inputs, hidden_, dx_.data(),
                   gradients.data() + layout_.token_embd());
  }
  if (hook) hook(0);
  const std::span<const float> losses = losses_.span().first(n_rows_);
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

void Network::backward_layer(const Batch& batch, const float* params, std::size_t index,
                             float* gradients) {
  if (limits_.recompute) run_layer(batch, params, index);
  const LayerOffsets& at = layout_.layer(index);
  backward_feed_forward(params, at, state(index), gradients);
  backward_attention(batch, params, at, input(index), state(index), gradients);
}

void Network::backward_feed_forward(const float* params, const LayerOffsets& at, LayerState& s,
                                    float* gradients) {
  const std::size_t ffn = shape_.hp.ffn_size;
  const LinearShape down{.n_rows = n_rows_, .n_in = ffn, .n_out = hidden_};
  const LinearShape in{.n_rows = n_rows_, .n_in = hidden_, .n_out = ffn};
  multiply_backward(down, dx_.data(), s.act.data(), params, at.down, d_act_.data(), false,
                    gradients);
  // gate and up have been read for the last time: their gradients take their place.
  silu_mul_backward(*team_, n_rows_ * ffn, s.gate.data(), s.up.data(), d_act_.data(), s.gate.data(),
                    s.up.data());
  multiply_backward(in, s.gate.data(), s.ffn_normed.data(), params, at.gate, d_normed_.data(),
                    false, gradients);
  multiply_backward(in, s.up.data(), s.ffn_normed.data(), params, at.up, d_normed_.data(), true,
                    gradients);
  rms_norm_backward(*team_, {n_rows_, hidden_, shape_.hp.rms_eps}, s.x_mid.data(),
                    vector(params, at.ffn_norm), d_normed_.data(), norm_scales_.data(), dx_.data(),
                    true, vector_gradient(gradients, at.ffn_norm));
}

void Network::backward_attention(const Batch& batch, const float* params, const LayerOffsets& at,
                                 const float* x, LayerState& s, float* gradients) {
  const model::HyperParams& hp = shape_.hp;
  const std::size_t n = n_rows_;
  const LinearShape out{.n_rows = n, .n_in = q_size_, .n_out = hidden_};
  multiply_backward(out, dx_.data(), s.attended.data(), params, at.attn_output, d_attended_.data(),
                    false, gradients);
  attention_backward(*team_, attention_shape(batch), s.q.data(), s.k.data(), s.v.data(),
                     d_attended_.data(), {.dq = dq_.data(), .dk = dk_.data(), .dv = dv_.data()},
                     attention_scratch_.span());

  // The way back through run_layer()'s project(); the first adds to nothing.
  const auto project = [&](float* d, std::size_t w, std::size_t bias, std::size_t size,
                           bool accumulate) {
    const LinearShape shape{.n_rows = n, .n_in = hidden_, .n_out = size};
    if (bias != LayerOffsets::kNone && lora_ == nullptr) {
      bias_backward(*team_, n, size, d, gradients + bias);
    }
    multiply_backward(shape, d, s.normed.data(), params, w, d_normed_.data(), accumulate,
                      gradients);
  };
  const auto turn = [&](float* d, std::size_t n_heads, std::size_t norm, const FloatBuffer& raw) {
    rope_.apply(*team_, batch.positions, n_heads, RopeTable::Turn::kBackward, d);
    if (norm == LayerOffsets::kNone) return;
    rms_norm_backward(*team_, {n * n_heads, hp.head_dim, hp.rms_eps}, raw.data(),
                      vector(params, norm), d, norm_scales_.data(), d, false,
                      vector_gradient(gradients, norm));
  };
  turn(dq_.data(), hp.n_heads, at.q_norm, s.q_raw);
  turn(dk_.data(), hp.n_kv_heads, at.k_norm, s.k_raw);
  project(dq_.data(), at.q, at.q_bias, q_size_, false);
  project(dk_.data(), at.k, at.k_bias, kv_size_, true);
  project(dv_.data(), at.v, at.v_bias, kv_size_, true);
  rms_norm_backward(*team_, {n, hidden_, hp.rms_eps}, x, vector(params, at.attn_norm),
                    d_normed_.data(), norm_scales_.data(), dx_.data(), true,
                    vector_gradient(gradients, at.attn_norm));
}

}  // namespace recua::train
