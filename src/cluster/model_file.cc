// Models that are described instead of there.
#include <algorithm>

#include <fmt/format.h>

#include "cluster/json_fields.h"
#include "cluster/model_shape.h"

namespace recua::cluster {
namespace {

quant::DataType read_type(JsonFields& fields, const char* key, quant::DataType otherwise) {
  if (!fields.has(key)) return otherwise;
  const std::string name = fields.text(key);
  const auto type = quant::data_type_from_name(name);
  if (!type) fields.fail(key, fmt::format("is \"{}\", need a type of weights such as Q4_K", name));
  return type.value_or(otherwise);
}

std::uint32_t read_size(JsonFields& fields, const char* key, std::uint64_t most) {
  return static_cast<std::uint32_t>(fields.count(key, 1, most));
}

MatrixShape matrix(quant::DataType type, std::uint64_t n_out, std::uint64_t n_in,
                   std::uint64_t n_experts = 1) {
  // Rows that are no whole blocks are rounded up; a file would use another type for them.
  const std::uint64_t block = quant::traits(type).block_size;
  const std::uint64_t padded = (n_in + block - 1) / block * block;
  return {.type = type,
          .n_weights = n_out * n_in * n_experts,
          .n_bytes = n_out * n_experts * quant::row_bytes(type, padded)};
}

LayerShape read_layer(const ModelShape& model, quant::DataType type) {
  const std::uint64_t hidden = model.hidden_size;
  const std::uint64_t q_size = std::uint64_t{model.n_heads} * model.head_dim;
  const std::uint64_t kv_size = std::uint64_t{model.n_kv_heads} * model.head_dim;
  const std::uint64_t n_experts = std::max(model.n_experts, 1U);
  LayerShape layer;
  layer.heads = {matrix(type, q_size, hidden), matrix(type, hidden, q_size)};
  layer.kv = {matrix(type, kv_size, hidden), matrix(type, kv_size, hidden)};
  layer.ffn = {matrix(type, model.ffn_size, hidden, n_experts),
               matrix(type, model.ffn_size, hidden, n_experts),
               matrix(type, hidden, model.ffn_size, n_experts)};
  if (model.n_experts > 0) {
    layer.whole = {matrix(quant::DataType::kF32, model.n_experts, hidden)};
  }
  layer.vector_bytes = 2 * sizeof(float) * hidden;
  return layer;
}

}  // namespace

Result<ModelShape> parse_model_shape(std::string_view text, std::string_view where,
                                     quant::DataType k_type, quant::DataType v_type) {
  RECUA_ASSIGN_OR_RETURN(const nlohmann::json value, parse_json(text, where));
  JsonErrors errors = {.where = std::string(where)};
  JsonFields fields(value, "", errors);
  ModelShape model;
  model.name = fields.text("name");
  const std::uint32_t n_layers = read_size(fields, "n_layers", model::kLayersMax);
  model.hidden_size = read_size(fields, "hidden_size", model::kDimMax);
  model.n_heads = read_size(fields, "n_heads", 4096);
  model.n_kv_heads = read_size(fields, "n_kv_heads", 4096);
  model.head_dim = static_cast<std::uint32_t>(fields.count_or(
      "head_dim", std::max(model.hidden_size / model.n_heads, 1U), 1, model::kDimMax / 64));
  model.ffn_size = read_size(fields, "ffn_size", model::kDimMax);
  model.vocab_size = read_size(fields, "vocab_size", model::kVocabMax);
  model.n_ctx_train =
      static_cast<std::uint32_t>(fields.count_or("n_ctx_train", 0, 1, model::kCtxMax));
  model.sliding_window =
      static_cast<std::uint32_t>(fields.count_or("sliding_window", 0, 0, model::kCtxMax));
  model.n_experts =
      static_cast<std::uint32_t>(fields.count_or("n_experts", 0, 0, model::kExpertsMax));
  if (model.n_experts > 0) {
    model.n_experts_used = read_size(fields, "n_experts_used", model.n_experts);
  }
  const quant::DataType type = read_type(fields, "type", quant::DataType::kF16);
  model.tied = fields.flag_or("tied", false);
  model.embedding =
      matrix(read_type(fields, "embedding_type", type), model.vocab_size, model.hidden_size);
  model.output = model.tied ? model.embedding
                            : matrix(read_type(fields, "output_type", type), model.vocab_size,
                                     model.hidden_size);
  if (model.n_heads % model.n_kv_heads != 0) {
    fields.fail("n_kv_heads", fmt::format("is {}, need a divisor of n_heads, {}", model.n_kv_heads,
                                          model.n_heads));
  }
  fields.finish();
  if (errors.first) return *errors.first;
  model.layers.assign(n_layers, read_layer(model, type));
  model.end_vector_bytes = sizeof(float) * std::uint64_t{model.hidden_size};
  const std::size_t kv_elements = std::size_t{model.n_kv_heads} * model.head_dim;
  model.kv_token_bytes =
      quant::row_bytes(k_type, kv_elements) + quant::row_bytes(v_type, kv_elements);
  return model;
}

}  // namespace recua::cluster
