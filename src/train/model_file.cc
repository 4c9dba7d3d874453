#include "train/model_file.h"

#include <array>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "base/sha256.h"
#include "gguf/gguf_writer.h"
#include "quant/dequantize.h"

namespace recua::train {
namespace {

using gguf::GgufFile;
using gguf::TensorInfo;
using gguf::Value;

constexpr std::string_view kRopeFreqs = "rope_freqs.weight";

Result<std::vector<float>> read_divisors(const GgufFile& file, const model::HyperParams& hp) {
  if (file.find(kRopeFreqs) == nullptr) return std::vector<float>{};
  const TensorSpec spec{.name = std::string(kRopeFreqs), .n_in = hp.rope_dim / 2};
  std::vector<float> out(spec.n_in);
  RECUA_RETURN_IF_ERROR(read_tensor(file, spec, out));
  for (const float divisor : out) {
    if (divisor > 0.0F) continue;
    return Error{ErrorCode::kCorrupt, fmt::format("{}: tensor {} has {}; expected numbers above 0",
                                                  file.name(), kRopeFreqs, divisor)};
  }
  return out;
}

void add_metadata(const ModelShape& shape, const ModelExport& how, gguf::GgufWriter& writer) {
  if (!how.from_model) model::add_hyperparams(shape.hp, writer);
  for (const auto& [key, value] : how.source->metadata()) {
    const bool is_ours = how.from_model ? !gguf::is_about_file(key) : key.starts_with("tokenizer.");
    if (is_ours) writer.add(key, value);
  }
  writer.add(gguf::keys::kFileType, Value(gguf::kFileTypeF32));
}

}  // namespace

std::string model_identity(const GgufFile& file) {
  // Of the shards' digests, so that none has to be in memory with another.
  std::vector<std::byte> digests;
  for (std::size_t i = 0; i < file.n_shards(); ++i) {
    const Digest digest = sha256(file.shard_bytes(i));
    digests.insert(digests.end(), digest.begin(), digest.end());
  }
  const auto name = file.find_str(gguf::keys::kName);
  const std::string_view text = name.ok() && *name ? **name : "without a name";
  return fmt::format("{} {}", gguf::quoted(text), to_hex(sha256(digests)).substr(0, 16));
}

Result<const TensorInfo*> checked_tensor(const GgufFile& file, const TensorSpec& spec) {
  RECUA_ASSIGN_OR_RETURN(const TensorInfo* tensor, file.tensor(spec.name));
  const bool fits =
      spec.is_matrix ? tensor->n_dims == 2 && tensor->shape[1] == spec.n_out : tensor->n_dims == 1;
  if (fits && tensor->shape[0] == spec.n_in) return tensor;
  const std::string expected = spec.is_matrix ? fmt::format("[{}, {}]", spec.n_in, spec.n_out)
                                              : fmt::format("[{}]", spec.n_in);
  return Error{ErrorCode::kCorrupt,
               fmt::format("{}: tensor {} has shape {}; expected {}", file.name(), spec.name,
                           tensor->shape_text(), expected)};
}

Result<void> read_tensor(const GgufFile& file, const TensorSpec& spec, std::span<float> out) {
  RECUA_ASSIGN_OR_RETURN(const TensorInfo* tensor, checked_tensor(file, spec));
  const std::size_t n = tensor->shape[0];
  const std::size_t row_bytes = quant::row_bytes(tensor->type, n);
  for (std::size_t r = 0; r < tensor->n_rows(); ++r) {
    quant::dequantize_row(tensor->type, tensor->data.data() + r * row_bytes, n, out.data() + r * n);
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (std::isfinite(out[i])) continue;
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: tensor {} has a weight that is NaN or infinite at element {}",
                             file.name(), spec.name, i)};
  }
  return ok();
}

Result<ModelShape> read_shape(const GgufFile& file) {
  ModelShape shape;
  RECUA_ASSIGN_OR_RETURN(shape.hp, model::read_hyperparams(file));
  const auto has = [&](model::Presence presence, std::string_view first) {
    return presence == model::Presence::kAlways ||
           (presence == model::Presence::kOptional && file.find(first) != nullptr);
  };
  shape.qkv_bias = has(shape.hp.architecture->qkv_bias, "blk.0.attn_q.bias");
  shape.qk_norm = has(shape.hp.architecture->qk_norm, "blk.0.attn_q_norm.weight");
  shape.tied = file.find("output.weight") == nullptr;
  if (auto trainable = check_trainable(shape); !trainable.ok()) {
    return std::move(trainable).error().within(file.name());
  }
  RECUA_ASSIGN_OR_RETURN(shape.rope_divisors, read_divisors(file, shape.hp));
  const ParameterLayout layout(shape);
  std::set<std::string_view> known = {kRopeFreqs};
  for (const TensorSpec& spec : layout.tensors()) known.insert(spec.name);
  for (const TensorInfo& tensor : file.tensors()) {
    if (known.contains(tensor.name)) continue;
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: recua does not train models with a tensor {}", file.name(),
                             gguf::quoted(tensor.name))};
  }
  return shape;
}

Result<void> read_params(const GgufFile& file, const ParameterLayout& layout,
                         std::span<float> params) {
  for (const TensorSpec& spec : layout.tensors()) {
    RECUA_RETURN_IF_ERROR(read_tensor(file, spec, params.subspan(spec.offset, spec.size())));
  }
  return ok();
}

std::vector<std::byte> shape_gguf(const ModelShape& shape, const ModelExport& how) {
  if (how.from_model) return model::hyperparams_gguf(*how.source, shape.hp.vocab_size);
  gguf::GgufWriter writer;
  model::add_hyperparams(shape.hp, writer);
  return writer.header();
}

Result<void> write_model(const std::filesystem::path& path, const ModelShape& shape,
                         const ParameterLayout& layout, std::span<const float> params,
                         const ModelExport& how) {
  gguf::GgufWriter writer;
  add_metadata(shape, how, writer);
  for (const TensorSpec& spec : layout.tensors()) {
    const std::array<std::uint64_t, 2> dims = {spec.n_in, spec.n_out};
    writer.add_tensor(spec.name, quant::DataType::kF32,
                      std::span(dims).first(spec.is_matrix ? 2 : 1));
  }
  const bool has_divisors = !shape.rope_divisors.empty();
  if (has_divisors) {
    const std::array<std::uint64_t, 1> dims = {shape.rope_divisors.size()};
    writer.add_tensor(kRopeFreqs, quant::DataType::kF32, dims);
  }
  RECUA_RETURN_IF_ERROR(writer.begin(path));
  RECUA_RETURN_IF_ERROR(writer.write(std::as_bytes(params)));
  if (has_divisors) {
    RECUA_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(shape.rope_divisors))));
  }
  return writer.finish();
}

}  // namespace recua::train
