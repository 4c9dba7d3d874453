#pragma once
/// The Llama family's stack of layers with its backward pass, over the operators of this folder.
/// Computes what model/forward.h does from the same weights.
///
/// Its parameters are all of the model's numbers; or, with a LoraModel, those of the adapter, and
/// the rest stays as it is in that model's file.
///
/// Memory: all of it is allocated here, for at most rows_max rows. Between the passes it keeps each
/// layer's input and, unless recompute is set, all that the layer's backward pass reads; with
/// recompute a layer runs again before its backward pass: about a third more time, and memory of
/// one layer. The gradients are the same to the bit.
/// Threads: one thread calls; it computes with the Team's.

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "train/batch.h"
#include "train/linear.h"
#include "train/lora_model.h"
#include "train/parameters.h"
#include "train/rope.h"
#include "train/team.h"

namespace recua::train {

struct NetworkLimits {
  std::size_t rows_max = 0;      // Rows of a batch.
  std::size_t sequence_max = 0;  // Rows of a sequence.
  bool recompute = false;
};

/// Called while a backward pass runs: the gradients from n_open on do not change any more. The last
/// time n_open is 0. Not for adapters, whose gradients are others.
using GradientHook = std::function<void(std::size_t n_open)>;

/// What a Network for these limits allocates, without the parameters and their gradients. lora
/// may be null.
std::size_t network_bytes(const ModelShape& shape, const NetworkLimits& limits,
                          std::size_t n_threads, const LoraModel* lora = nullptr);

class Network {
 public:
  /// team and lora outlive the network. kResourceExhausted: says how much memory is missing.
  static Result<Network> create(Team& team, const ModelShape& shape, const NetworkLimits& limits,
                                const LoraModel* lora = nullptr);

  /// Of the parameters.
  [[nodiscard]] const ParameterLayout& layout() const {
    return lora_ != nullptr ? lora_->layout() : layout_;
  }

  /// The sum of the counted rows' losses. Token ids are below the vocabulary's size.
  double loss(const Batch& batch, std::span<const float> params);

  /// The same, and adds the gradient of scale * loss to gradients.
  double loss_and_gradient(const Batch& batch, std::span<const float> params, float scale,
                           std::span<float> gradients, const GradientHook& hook = {});

  /// All rows' logits [n_rows, vocab_size], for tests and small batches.
  void logits(const Batch& batch, std::span<const float> params, std::span<float> out);

 private:
  /// What the backward pass of a layer reads, besides its input.
  struct LayerState {
    FloatBuffer normed, q_raw, k_raw, q, k, v, attended, x_mid, ffn_normed, gate, up, act;
  };

  Network(Team& team, const ModelShape& shape, const NetworkLimits& limits, const LoraModel* lora);
  Result<void> allocate();
  void forward(const Batch& batch, std::span<const float> params);
  void run_layer(const Batch& batch, const float* params, std::size_t index);
  void backward_layer(const Batch& batch, const float* params, std::size_t index, float* gradients);
  void backward_feed_forward(const float* params, const LayerOffsets& at, LayerState& state,
                             float* gradients);
  void backward_attention(const Batch& batch, const float* params, const LayerOffsets& at,
                          const float* x, LayerState& state, float* gradients);
  // Of tensors by their offset in layout_, wherever their numbers are: network_weights.cc.
  [[nodiscard]] const float* vector(const float* params, std::size_t at) const;
  [[nodiscard]] float* vector_gradient(float* gradients, std::size_t at) const;
  [[nodiscard]] LoraPair pair(const float* params, const LoraModel::PairOffsets& at) const;
  void embed_rows(const Batch& batch, const float* params);
  void multiply(const LinearShape& shape, const float* x, const float* params, std::size_t w,
                float* y);
  // Sets dx, or adds to it; dy and x as in the forward pass.
  void multiply_backward(const LinearShape& shape, const float* dy, const float* x,
                         const float* params, std::size_t w, float* dx, bool accumulate,
                         float* gradients);
  [[nodiscard]] AttentionShape attention_shape(const Batch& batch) const;
  [[nodiscard]] LayerState& state(std::size_t layer) {
    return states_[limits_.recompute ? 0 : layer];
  }
  [[nodiscard]] float* input(std::size_t layer) const {
    return inputs_.data() + layer * limits_.rows_max * hidden_;
  }

  Team* team_;
  ModelShape shape_;
  NetworkLimits limits_;
  ParameterLayout layout_;  // Of all of the model's tensors.
  const LoraModel* lora_;   // Null: those are the parameters.
  RopeTable rope_;
  std::size_t hidden_;
  std::size_t q_size_;
  std::size_t kv_size_;
  std::size_t logit_rows_;  // Rows whose logits are in memory at a time.
  std::size_t n_rows_ = 0;  // Of the batch that runs.

  FloatBuffer
      inputs_;  // [n_layers + 1, rows_max, hidden]: each layer's, and the last one's output.
  std::vector<LayerState> states_;
  FloatBuffer final_normed_;  // [rows_max, hidden]
  FloatBuffer logits_;        // [logit_rows, vocab_size]
  FloatBuffer losses_;        // [rows_max]
  FloatBuffer dx_, d_normed_, d_act_, d_attended_, dq_, dk_, dv_;
  FloatBuffer norm_scales_;  // One per row or head.
  FloatBuffer attention_scratch_;
  FloatBuffer frozen_scratch_, lora_scratch_;  // With lora_ only.
};

}  // namespace recua::train
