#include "train/lora_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "gguf/gguf_writer.h"
#include "model/lora.h"
#include "train/model_file.h"

namespace recua::train {
namespace {

// "blk.3.attn_q.weight" of "attn_q".
bool is_target(const TensorSpec& spec, const LoraOptions& options) {
  if (!spec.is_matrix || !spec.name.starts_with("blk.")) return false;
  return std::ranges::any_of(options.targets, [&](const std::string& target) {
    return spec.name.ends_with(fmt::format(".{}.weight", target));
  });
}

// A begins with small random numbers and B with zeros: at first the adapter changes nothing. A's
// deviation keeps x a^T as large as x is in one of its elements: those that PEFT draws, uniform
// within 1 / sqrt(n_in), have sqrt(1 / 3 n_in).
std::vector<TensorSpec> adapter_tensors(const ParameterLayout& base, const LoraOptions& options) {
  std::vector<TensorSpec> out;
  for (const TensorSpec& spec : base.tensors()) {
    if (!is_target(spec, options)) continue;
    const float deviation = std::sqrt(1.0F / (3.0F * static_cast<float>(spec.n_in)));
    out.push_back({.name = spec.name + std::string(model::kLoraA),
                   .n_out = options.rank,
                   .n_in = spec.n_in,
                   .is_matrix = true,
                   .init_deviation = deviation});
    out.push_back({.name = spec.name + std::string(model::kLoraB),
                   .n_out = spec.n_out,
                   .n_in = options.rank,
                   .is_matrix = true});
  }
  return out;
}

}  // namespace

Result<LoraModel> LoraModel::create(const gguf::GgufFile& file, const ModelShape& shape,
                                    const LoraOptions& options) {
  RECUA_CHECK(!options.targets.empty());
  if (options.rank < 1 || options.rank > model::kLoraRankMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the adapter's rank is {}, must be from 1 to {}", options.rank,
                             model::kLoraRankMax)};
  }
  const ParameterLayout base(shape);
  LoraModel out(options, ParameterLayout(adapter_tensors(base, options)));
  std::size_t next = 0;  // Of the adapter's tensors: they have the order of the model's.
  for (const TensorSpec& spec : base.tensors()) {
    if (!spec.is_matrix) {
      std::vector<float>& numbers = out.vectors_[spec.offset];
      numbers.resize(spec.size());
      RECUA_RETURN_IF_ERROR(read_tensor(file, spec, numbers));
      continue;
    }
    RECUA_ASSIGN_OR_RETURN(const gguf::TensorInfo* tensor, checked_tensor(file, spec));
    out.matrices_[spec.offset] = {
        .type = tensor->type, .data = tensor->data.data(), .n_in = spec.n_in, .n_out = spec.n_out};
    out.n_in_max_ = std::max(out.n_in_max_, spec.n_in);
    if (!is_target(spec, options)) continue;
    const std::span<const TensorSpec> tensors = out.layout_.tensors();
    out.pairs_[spec.offset] = {.a = tensors[next].offset, .b = tensors[next + 1].offset};
    next += 2;
  }
  return out;
}

const FrozenMatrix& LoraModel::matrix(std::size_t offset) const { return matrices_.at(offset); }

const float* LoraModel::vector(std::size_t offset) const { return vectors_.at(offset).data(); }

const LoraModel::PairOffsets* LoraModel::pair(std::size_t offset) const {
  const auto found = pairs_.find(offset);
  return found == pairs_.end() ? nullptr : &found->second;
}

Result<void> write_adapter(const std::filesystem::path& path, const ModelShape& shape,
                           const LoraModel& model, std::span<const float> params) {
  RECUA_CHECK(params.size() == model.layout().n_params());
  gguf::GgufWriter writer;
  writer.add(gguf::keys::kType, "adapter");
  writer.add(gguf::keys::kArchitecture, gguf::Value(shape.hp.architecture->name));
  if (!shape.hp.name.empty()) {
    writer.add(gguf::keys::kName, gguf::Value(std::string_view(shape.hp.name)));
  }
  writer.add(gguf::keys::kFileType, gguf::Value(gguf::kFileTypeF32));
  writer.add(gguf::keys::kAdapterType, "lora");
  writer.add(gguf::keys::kLoraAlpha, gguf::Value(model.options().alpha));
  for (const TensorSpec& spec : model.layout().tensors()) {
    writer.add_tensor(spec.name, quant::DataType::kF32,
                      std::array<std::uint64_t, 2>{spec.n_in, spec.n_out});
  }
  RECUA_RETURN_IF_ERROR(writer.begin(path));
  RECUA_RETURN_IF_ERROR(writer.write(std::as_bytes(params)));
  return writer.finish();
}

}  // namespace recua::train
