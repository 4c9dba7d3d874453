#pragma once
/// ModelShape: what the planner knows of a model, the sizes of its matrices and of its cache. Read
/// from a GGUF file's header (no weights are touched) or from a description of a model that nobody
/// has here.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"
#include "quant/data_type.h"

namespace recua::cluster {

/// A stored matrix; with experts all of them together.
struct MatrixShape {
  quant::DataType type = quant::DataType::kF32;
  std::uint64_t n_weights = 0;
  std::uint64_t n_bytes = 0;
};

/// A layer's matrices by how tensor ranks divide them.
struct LayerShape {
  std::vector<MatrixShape> heads = {};  // By query heads: q and the attention's output matrix.
  std::vector<MatrixShape> kv = {};     // By KV heads: k and v.
  std::vector<MatrixShape> ffn = {};    // By columns: gate, up, down, or those of all experts.
  std::vector<MatrixShape> whole = {};  // On every rank: the router.
  std::uint64_t vector_bytes = 0;       // On every rank: norms, biases.

  [[nodiscard]] std::uint64_t bytes() const;
};

struct ModelShape {
  std::string name;
  std::uint32_t hidden_size = 0;
  std::uint32_t n_heads = 0;
  std::uint32_t n_kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t ffn_size = 0;  // Columns: of the feed-forward, or of each expert.
  std::uint32_t n_experts = 0;
  std::uint32_t n_experts_used = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t n_ctx_train = 0;     // 0: unknown.
  std::uint32_t sliding_window = 0;  // 0: attention sees all earlier tokens.
  std::vector<LayerShape> layers = {};
  MatrixShape embedding = {};          // First slice; also last if tied.
  MatrixShape output = {};             // What the last slice multiplies by; the embedding if tied.
  bool tied = false;                   // The output matrix is the embedding table.
  std::uint64_t kv_token_bytes = 0;    // Keys and values of one token in one layer.
  std::uint64_t end_vector_bytes = 0;  // Norms and the like beside the output matrix.

  [[nodiscard]] std::uint32_t n_layers() const { return static_cast<std::uint32_t>(layers.size()); }
  /// All weights, once.
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] std::uint64_t n_weights() const;
};

/// k_type and v_type: of the cache.
ModelShape model_shape(const gguf::GgufFile& file, const model::HyperParams& hp,
                       quant::DataType k_type, quant::DataType v_type);

/// A model that is described instead of there: docs/planning.md, "Describing a model".
/// where stands for the file in messages. kInvalidArgument: names the field and what would be
/// right.
Result<ModelShape> parse_model_shape(std::string_view json, std::string_view where,
                                     quant::DataType k_type, quant::DataType v_type);

}  // namespace recua::cluster
