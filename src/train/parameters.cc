#include "train/parameters.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "base/random.h"

namespace recua::train {

Result<void> check_trainable(const ModelShape& shape) {
  if (shape.hp.n_experts == 0) return ok();
  return Error{ErrorCode::kUnsupported,
               fmt::format("the model has {} experts per layer; recua trains models without",
                           shape.hp.n_experts)};
}

std::size_t ParameterLayout::matrix(std::string name, std::size_t n_out, std::size_t n_in,
                                    float gain) {
  // Deviation sqrt(2 / 5d): Nguyen & Salazar 2019, "Transformers without Tears", small init.
  const float deviation = gain * std::sqrt(0.4F / static_cast<float>(n_in));
  const std::size_t offset = n_params_;
  tensors_.push_back({.name = std::move(name),
                      .n_out = n_out,
                      .n_in = n_in,
                      .is_matrix = true,
                      .offset = offset,
                      .init_deviation = deviation});
  n_params_ += n_out * n_in;
  return offset;
}

std::size_t ParameterLayout::vector(std::string name, std::size_t n, float mean) {
  const std::size_t offset = n_params_;
  tensors_.push_back({.name = std::move(name), .n_in = n, .offset = offset, .init_mean = mean});
  n_params_ += n;
  return offset;
}

void ParameterLayout::add_layer(const ModelShape& shape, std::size_t index) {
  const model::HyperParams& hp = shape.hp;
  const std::string prefix = fmt::format("blk.{}.", index);
  const std::size_t hidden = hp.hidden_size;
  const std::size_t q_size = std::size_t{hp.n_heads} * hp.head_dim;
  const std::size_t kv_size = std::size_t{hp.n_kv_heads} * hp.head_dim;
  // What adds to the residual stream is smaller by the square root of how many do.
  const float branch = 1.0F / std::sqrt(2.0F * static_cast<float>(hp.n_layers));
  LayerOffsets at;
  at.attn_norm = vector(prefix + "attn_norm.weight", hidden, 1.0F);
  at.q = matrix(prefix + "attn_q.weight", q_size, hidden, 1.0F);
  at.k = matrix(prefix + "attn_k.weight", kv_size, hidden, 1.0F);
  at.v = matrix(prefix + "attn_v.weight", kv_size, hidden, 1.0F);
  if (shape.qkv_bias) {
    at.q_bias = vector(prefix + "attn_q.bias", q_size, 0.0F);
    at.k_bias = vector(prefix + "attn_k.bias", kv_size, 0.0F);
    at.v_bias = vector(prefix + "attn_v.bias", kv_size, 0.0F);
  }
  if (shape.qk_norm) {
    at.q_norm = vector(prefix + "attn_q_norm.weight", hp.head_dim, 1.0F);
    at.k_norm = vector(prefix + "attn_k_norm.weight", hp.head_dim, 1.0F);
  }
  at.attn_output = matrix(prefix + "attn_output.weight", hidden, q_size, branch);
  at.ffn_norm = vector(prefix + "ffn_norm.weight", hidden, 1.0F);
  at.gate = matrix(prefix + "ffn_gate.weight", hp.ffn_size, hidden, 1.0F);
  at.up = matrix(prefix + "ffn_up.weight", hp.ffn_size, hidden, 1.0F);
  at.down = matrix(prefix + "ffn_down.weight", hidden, hp.ffn_size, branch);
  layers_.push_back(at);
}

ParameterLayout::ParameterLayout(const ModelShape& shape) {
  const model::HyperParams& hp = shape.hp;
  token_embd_ = matrix("token_embd.weight", hp.vocab_size, hp.hidden_size, 1.0F);
  for (std::size_t i = 0; i < hp.n_layers; ++i) add_layer(shape, i);
  output_norm_ = vector("output_norm.weight", hp.hidden_size, 1.0F);
  output_ = shape.tied ? token_embd_ : matrix("output.weight", hp.vocab_size, hp.hidden_size, 1.0F);
}

ParameterLayout::ParameterLayout(std::vector<TensorSpec> tensors) : tensors_(std::move(tensors)) {
  for (TensorSpec& tensor : tensors_) {
    tensor.offset = n_params_;
    n_params_ += tensor.size();
  }
}

void ParameterLayout::initialize(std::uint64_t seed, std::span<float> params) const {
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    const TensorSpec& tensor = tensors_[t];
    Rng rng(mix(seed, t));
    for (float& x : params.subspan(tensor.offset, tensor.size())) {
      x = tensor.init_mean;
      if (tensor.init_deviation > 0.0F) {
        x += tensor.init_deviation * static_cast<float>(rng.normal());
      }
    }
  }
}

}  // namespace recua::train
