#pragma once
/// The weights of a slice on a device.

#include <memory>
#include <vector>

#include "compute/device.h"
#include "model/hyperparams.h"
#include "model/slice.h"
#include "model/slice_runner.h"

namespace recua::model {

using Matrix = std::unique_ptr<compute::Weight>;
using Vector = std::unique_ptr<compute::Buffer>;

/// What an adapter adds to the product of a matrix [n_out, n_in]: B (A x). See model/lora.h.
struct Lora {
  Matrix a;  // [rank, n_in]; null: the matrix is not adapted
  Matrix b;  // [n_out, rank], times the adapter's scale
};

/// Null: the layer has none of it. Shapes slowest dimension first, of a slice that is not split:
/// a rank has its part (model/tensor_part.h).
struct LayerWeights {
  Vector attn_norm;               // [hidden_size]
  Matrix q, k, v;                 // [n_heads * head_dim, hidden_size], k and v with n_kv_heads
  Vector q_bias, k_bias, v_bias;  // One per row of q, k, v.
  Vector q_norm, k_norm;          // [head_dim]
  Matrix attn_output;             // [hidden_size, n_heads * head_dim]
  Vector ffn_norm;                // [hidden_size]
  Matrix router;                  // [n_experts, hidden_size], with experts only
  Matrix gate, up;                // [ffn_size, hidden_size], or one of these per expert
  Matrix down;                    // [hidden_size, ffn_size], or one of these per expert
  Lora q_lora, k_lora, v_lora, attn_output_lora, gate_lora, up_lora, down_lora;
};

/// The largest rank and number of outputs of the adapted matrices; 0: there are none.
struct LoraSize {
  std::size_t rank = 0;
  std::size_t n_out = 0;
};

struct SliceWeights {
  Matrix token_embd;                 // [vocab_size, hidden_size]; first slice, and last if tied
  std::vector<LayerWeights> layers;  // Those of the slice.
  Vector output_norm;                // [hidden_size]; last slice
  Matrix output;                     // [vocab_size, hidden_size]; last slice, null if tied
  Vector inv_freq;                   // [rope_dim / 2]
  float rope_magnitude = 1.0F;

  [[nodiscard]] const compute::Weight& output_matrix() const {
    return output ? *output : *token_embd;
  }
};

[[nodiscard]] LoraSize lora_size(const SliceWeights& weights);

/// Every tensor is found and checked before the first is loaded.
/// kNotFound: names the tensor. kCorrupt: its shape, type or size is wrong; says what was found and
/// expected. kUnsupported: the file has a tensor that changes the result in a way we do not know.
Result<SliceWeights> load_weights(compute::Device& device, const HyperParams& hp,
                                  const WeightSource& source, const Slice& slice,
                                  const LoadProgress& progress);

}  // namespace recua::model
