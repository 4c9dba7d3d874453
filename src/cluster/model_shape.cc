#include "cluster/model_shape.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace recua::cluster {
namespace {

std::uint64_t sum_bytes(const std::vector<MatrixShape>& matrices) {
  std::uint64_t bytes = 0;
  for (const MatrixShape& matrix : matrices) bytes += matrix.n_bytes;
  return bytes;
}

std::uint64_t sum_weights(const std::vector<MatrixShape>& matrices) {
  std::uint64_t n = 0;
  for (const MatrixShape& matrix : matrices) n += matrix.n_weights;
  return n;
}

/// "blk.3.attn_q.weight": 3 and "attn_q.weight".
struct LayerName {
  std::uint32_t layer = 0;
  std::string_view part;
};
std::optional<LayerName> layer_name(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  LayerName out;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), out.layer);
  if (error != std::errc{} || end == name.data() + name.size() || *end != '.') return std::nullopt;
  out.part = name.substr(static_cast<std::size_t>(end - name.data()) + 1);
  return out;
}

void add_layer_tensor(LayerShape& layer, std::string_view part, const MatrixShape& matrix) {
  if (!part.ends_with(".weight")) {
    layer.vector_bytes += matrix.n_bytes;
  } else if (part == "attn_q.weight" || part == "attn_output.weight") {
    layer.heads.push_back(matrix);
  } else if (part == "attn_k.weight" || part == "attn_v.weight") {
    layer.kv.push_back(matrix);
  } else if (part == "ffn_gate_inp.weight") {
    layer.whole.push_back(matrix);
  } else if (part.starts_with("ffn_") && part != "ffn_norm.weight") {
    layer.ffn.push_back(matrix);
  } else {
    layer.vector_bytes += matrix.n_bytes;
  }
}

}  // namespace

std::uint64_t LayerShape::bytes() const {
  return sum_bytes(heads) + sum_bytes(kv) + sum_bytes(ffn) + sum_bytes(whole) + vector_bytes;
}

std::uint64_t ModelShape::bytes() const {
  std::uint64_t bytes = embedding.n_bytes + end_vector_bytes + (tied ? 0 : output.n_bytes);
  for (const LayerShape& layer : layers) bytes += layer.bytes();
  return bytes;
}

std::uint64_t ModelShape::n_weights() const {
  std::uint64_t n = embedding.n_weights + (tied ? 0 : output.n_weights);
  for (const LayerShape& layer : layers) {
    n += sum_weights(layer.heads) + sum_weights(layer.kv) + sum_weights(layer.ffn) +
         sum_weights(layer.whole);
  }
  return n;
}

ModelShape model_shape(const gguf::GgufFile& file, const model::HyperParams& hp,
                       quant::DataType k_type, quant::DataType v_type) {
  ModelShape model;
  model.name = file.name();
  model.hidden_size = hp.hidden_size;
  model.n_heads = hp.n_heads;
  model.n_kv_heads = hp.n_kv_heads;
  model.head_dim = hp.head_dim;
  model.ffn_size = hp.n_experts == 0 ? hp.ffn_size : hp.expert_ffn_size;
  model.n_experts = hp.n_experts;
  model.n_experts_used = hp.n_experts_used;
  model.vocab_size = hp.vocab_size;
  model.n_ctx_train = hp.n_ctx_train;
  model.sliding_window = hp.sliding_window;
  model.layers.resize(hp.n_layers);
  model.tied = file.find("output.weight") == nullptr;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const MatrixShape matrix = {
        .type = tensor.type, .n_weights = tensor.n_elements, .n_bytes = tensor.n_bytes};
    if (const auto name = layer_name(tensor.name)) {
      if (name->layer < hp.n_layers)
        add_layer_tensor(model.layers[name->layer], name->part, matrix);
    } else if (tensor.name == "token_embd.weight") {
      model.embedding = matrix;
    } else if (tensor.name == "output.weight") {
      model.output = matrix;
    } else {
      model.end_vector_bytes += matrix.n_bytes;
    }
  }
  if (model.tied) model.output = model.embedding;
  const std::size_t kv_elements = std::size_t{hp.n_kv_heads} * hp.head_dim;
  model.kv_token_bytes =
      quant::row_bytes(k_type, kv_elements) + quant::row_bytes(v_type, kv_elements);
  return model;
}

}  // namespace recua::cluster
