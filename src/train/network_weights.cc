// The network's tensors: its parameters, or those of a file with the parameters as an adapter.
#include "train/network.h"

namespace recua::train {

const float* Network::vector(const float* params, std::size_t at) const {
  return lora_ != nullptr ? lora_->vector(at) : params + at;
}

float* Network::vector_gradient(float* gradients, std::size_t at) const {
  return lora_ != nullptr ? nullptr : gradients + at;
}

LoraPair Network::pair(const float* params, const LoraModel::PairOffsets& at) const {
  return {.a = params + at.a,
          .b = params + at.b,
          .rank = lora_->options().rank,
          .scale = lora_->options().scale()};
}

void Network::embed_rows(const Batch& batch, const float* params) {
  const std::size_t table = layout_.token_embd();
  if (lora_ != nullptr) {
    frozen_embed(*team_, batch.inputs, lora_->matrix(table), input(0));
  } else {
    embed(*team_, batch.inputs, hidden_, params + table, input(0));
  }
}

void Network::multiply(const LinearShape& shape, const float* x, const float* params, std::size_t w,
                       float* y) {
  if (lora_ == nullptr) return linear(*team_, shape, x, params + w, y);
  frozen_linear(*team_, shape.n_rows, x, lora_->matrix(w), y, frozen_scratch_.span());
  if (const auto* const at = lora_->pair(w)) {
    lora_forward(*team_, shape, x, pair(params, *at), y, lora_scratch_.span());
  }
}

void Network::multiply_backward(const LinearShape& shape, const float* dy, const float* x,
                                const float* params, std::size_t w, float* dx, bool accumulate,
                                float* gradients) {
  if (lora_ == nullptr) {
    linear_backward_weight(*team_, shape, dy, x, gradients + w);
    return linear_backward_input(*team_, shape, dy, params + w, dx, accumulate);
  }
  frozen_linear_backward_input(*team_, shape.n_rows, dy, lora_->matrix(w), dx, accumulate,
                               frozen_scratch_.span());
  if (const auto* const at = lora_->pair(w)) {
    lora_backward(*team_, shape, dy, x, pair(params, *at), dx,
                  {.da = gradients + at->a, .db = gradients + at->b}, lora_scratch_.span());
  }
}

}  // namespace recua::train
