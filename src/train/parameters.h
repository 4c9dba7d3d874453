#pragma once
/// The trainable numbers of a model: one array of f32, and which part of it is which tensor.
///
/// Gradients and the optimizer's moments are arrays of the same layout. Tensors have the names of
/// the GGUF specification and lie in the order in which recua writes them, without gaps; a matrix
/// is [n_out, n_in].

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/hyperparams.h"

namespace recua::train {

/// What a trained model is, beside its numbers.
struct ModelShape {
  model::HyperParams hp;  // Dense: no experts.
  bool qkv_bias = false;
  bool qk_norm = false;
  bool tied = false;                      // The embedding is the output matrix too.
  std::vector<float> rope_divisors = {};  // Of rope_freqs.weight, which is not trained; or empty.
};

/// kUnsupported: a mixture of experts.
Result<void> check_trainable(const ModelShape& shape);

struct TensorSpec {
  std::string name;
  std::size_t n_out = 1;  // 1 for vectors.
  std::size_t n_in = 0;
  bool is_matrix = false;
  std::size_t offset = 0;
  float init_mean = 0.0F;
  float init_deviation = 0.0F;

  [[nodiscard]] std::size_t size() const { return n_out * n_in; }
};

/// Offsets of a layer's tensors; kNone where the model has no such tensor.
struct LayerOffsets {
  static constexpr std::size_t kNone = ~std::size_t{0};
  std::size_t attn_norm = kNone, q = kNone, k = kNone, v = kNone;
  std::size_t q_bias = kNone, k_bias = kNone, v_bias = kNone;
  std::size_t q_norm = kNone, k_norm = kNone;
  std::size_t attn_output = kNone, ffn_norm = kNone;
  std::size_t gate = kNone, up = kNone, down = kNone;
};

class ParameterLayout {
 public:
  /// All of a model's.
  explicit ParameterLayout(const ModelShape& shape);
  /// Of these tensors alone, whose offsets are set here; it has none of the accessors of a model.
  explicit ParameterLayout(std::vector<TensorSpec> tensors);

  [[nodiscard]] std::span<const TensorSpec> tensors() const { return tensors_; }
  [[nodiscard]] std::size_t n_params() const { return n_params_; }
  [[nodiscard]] const LayerOffsets& layer(std::size_t i) const { return layers_[i]; }
  [[nodiscard]] std::size_t n_layers() const { return layers_.size(); }
  [[nodiscard]] std::size_t token_embd() const { return token_embd_; }
  [[nodiscard]] std::size_t output_norm() const { return output_norm_; }
  /// That of the embedding if they are tied.
  [[nodiscard]] std::size_t output() const { return output_; }

  /// Random weights to begin with: depends on the seed only.
  void initialize(std::uint64_t seed, std::span<float> params) const;

 private:
  std::size_t matrix(std::string name, std::size_t n_out, std::size_t n_in, float gain);
  std::size_t vector(std::string name, std::size_t n, float mean);
  void add_layer(const ModelShape& shape, std::size_t index);

  std::vector<TensorSpec> tensors_;
  std::vector<LayerOffsets> layers_;
  std::size_t n_params_ = 0;
  std::size_t token_embd_ = 0;
  std::size_t output_norm_ = 0;
  std::size_t output_ = 0;
};

}  // namespace recua::train
