#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/sha256.h"
#include "gguf/gguf_writer.h"
#include "gguf/keys.h"
#include "quant/dequantize.h"

namespace recua::model {
namespace {

struct Pair {
  const gguf::TensorInfo* a = nullptr;
  const gguf::TensorInfo* b = nullptr;
};
using Pairs = std::map<std::string, Pair, std::less<>>;  // By the name of the model's matrix.

Error corrupt(std::string message) { return {ErrorCode::kCorrupt, std::move(message)}; }

Result<void> check_text(const gguf::GgufFile& adapter, std::string_view key,
                        std::string_view expected, std::string_view why) {
  RECUA_ASSIGN_OR_RETURN(const auto found, adapter.find_str(key));
  if (found && *found == expected) return ok();
  return corrupt(fmt::format("{}: {} is {}, must be \"{}\"{}", adapter.name(), key,
                             found ? gguf::quoted(*found) : "missing", expected, why));
}

// "blk.3.attn_q.weight", of the matrices that the forward pass adapts.
bool is_adapted(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  constexpr std::string_view kEnding = ".weight";
  if (!name.starts_with(kPrefix) || !name.ends_with(kEnding)) return false;
  name.remove_suffix(kEnding.size());
  const std::size_t dot = name.find('.', kPrefix.size());
  return dot != std::string_view::npos &&
         std::ranges::find(kLoraMatrices, name.substr(dot + 1)) != kLoraMatrices.end();
}

Result<Pairs> find_pairs(const gguf::GgufFile& adapter) {
  Pairs pairs;
  for (const gguf::TensorInfo& tensor : adapter.tensors()) {
    std::string_view name = tensor.name;
    const bool is_a = name.ends_with(kLoraA);
    if (!is_a && !name.ends_with(kLoraB)) {
      return Error{ErrorCode::kUnsupported,
                   fmt::format("{}: tensor {} is not part of a low-rank pair; names must end in {} "
                               "or {}",
                               adapter.name(), gguf::quoted(name), kLoraA, kLoraB)};
    }
    name.remove_suffix(is_a ? kLoraA.size() : kLoraB.size());
    Pair& pair = pairs[std::string(name)];
    (is_a ? pair.a : pair.b) = &tensor;
  }
  if (pairs.empty()) return corrupt(fmt::format("{}: an adapter without tensors", adapter.name()));
  return pairs;
}

Result<void> check_pair(const gguf::GgufFile& adapter, const gguf::GgufFile& model,
                        const std::string& name, const Pair& pair) {
  const gguf::TensorInfo& one = pair.a != nullptr ? *pair.a : *pair.b;
  const std::string where = fmt::format("{}: tensor {}", adapter.name(), gguf::quoted(one.name));
  if (pair.a == nullptr || pair.b == nullptr) {
    return corrupt(fmt::format("{} has no {} beside it", where,
                               gguf::quoted(name + std::string(pair.a ? kLoraB : kLoraA))));
  }
  const gguf::TensorInfo* matrix = model.find(name);
  if (matrix == nullptr) {
    return corrupt(
        fmt::format("{}: the model {} has no tensor {}; was the adapter made for "
                    "another model?",
                    where, model.name(), gguf::quoted(name)));
  }
  if (!is_adapted(name)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: recua applies adapters to the matrices of attention and of dense "
                             "feed-forwards only (attn_q, attn_k, attn_v, attn_output, ffn_gate, "
                             "ffn_up, ffn_down)",
                             where)};
  }
  if (matrix->n_dims > 2) {
    return corrupt(fmt::format("{}: the model's {} has shape {}, need a matrix of 2 dimensions",
                               where, gguf::quoted(name), matrix->shape_text()));
  }
  const auto check_shape = [&](const gguf::TensorInfo& tensor, std::uint64_t n_in,
                               std::uint64_t n_out) -> Result<void> {
    if (tensor.n_dims <= 2 && tensor.shape[0] == n_in && tensor.shape[1] == n_out) return ok();
    return corrupt(fmt::format(
        "{}: tensor {} has shape {}; expected [{}, {}] for rank {} and the model's {} of {}",
        adapter.name(), gguf::quoted(tensor.name), tensor.shape_text(), n_in, n_out,
        pair.a->shape[1], name, matrix->shape_text()));
  };
  const std::uint64_t rank = pair.a->shape[1];
  if (rank > kLoraRankMax) {
    return corrupt(fmt::format("{} has rank {}, need at most {}", where, rank, kLoraRankMax));
  }
  RECUA_RETURN_IF_ERROR(check_shape(*pair.a, matrix->shape[0], rank));
  return check_shape(*pair.b, rank, matrix->shape[1]);
}

// The tensor's numbers times factor.
Result<std::vector<float>> scaled(const gguf::GgufFile& adapter, const gguf::TensorInfo& tensor,
                                  float factor) {
  std::vector<float> out(tensor.n_elements);
  const std::size_t n_in = tensor.shape[0];
  const std::size_t row_bytes = quant::row_bytes(tensor.type, n_in);
  for (std::size_t row = 0; row < tensor.n_rows(); ++row) {
    quant::dequantize_row(tensor.type, tensor.data.data() + row * row_bytes, n_in,
                          out.data() + row * n_in);
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] *= factor;
    if (std::isfinite(out[i])) continue;
    return corrupt(
        fmt::format("{}: tensor {} has a number at row {}, column {} that is not finite"
                    " when it is multiplied by {}",
                    adapter.name(), gguf::quoted(tensor.name), i / n_in, i % n_in, factor));
  }
  return out;
}

// The pairs as a file in memory, the factor in B.
Result<std::vector<std::byte>> pack(const gguf::GgufFile& adapter, const Pairs& pairs, float alpha,
                                    float scale) {
  gguf::GgufWriter writer;
  for (const auto& [name, pair] : pairs) {
    for (const gguf::TensorInfo* tensor : {pair.a, pair.b}) {
      writer.add_tensor(tensor->name, quant::DataType::kF32, std::span(tensor->shape).first<2>());
    }
  }
  std::vector<std::byte> bytes = writer.header();
  bytes.reserve(writer.file_bytes());
  for (const auto& [name, pair] : pairs) {
    const auto rank = static_cast<float>(pair.a->shape[1]);
    const float factor = alpha == 0.0F ? scale : scale * alpha / rank;
    for (const gguf::TensorInfo* tensor : {pair.a, pair.b}) {
      RECUA_ASSIGN_OR_RETURN(const std::vector<float> numbers,
                             scaled(adapter, *tensor, tensor == pair.a ? 1.0F : factor));
      const auto raw = std::as_bytes(std::span(numbers));
      bytes.insert(bytes.end(), raw.begin(), raw.end());
      bytes.resize(align_up<std::size_t>(bytes.size(), gguf::kAlignmentDefault));
    }
  }
  return bytes;
}

}  // namespace

Result<void> add_lora(gguf::GgufFile& model, const HyperParams& hp,
                      const std::filesystem::path& path, float scale) {
  if (has_lora(model)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{} has an adapter's tensors already ({} or {}); {} can be added to "
                             "a model without",
                             model.name(), kLoraA, kLoraB, path.string())};
  }
  RECUA_ASSIGN_OR_RETURN(const gguf::GgufFile adapter, gguf::GgufFile::open(path));
  RECUA_RETURN_IF_ERROR(
      check_text(adapter, gguf::keys::kType, "adapter", " (is it a whole model?)"));
  RECUA_RETURN_IF_ERROR(check_text(adapter, gguf::keys::kAdapterType, "lora", ""));
  RECUA_RETURN_IF_ERROR(check_text(adapter, gguf::keys::kArchitecture, hp.architecture->name,
                                   fmt::format(" as {} has it", model.name())));
  if (adapter.has(gguf::keys::kInvocationTokens)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: {}: recua applies an adapter to all tokens or none",
                             adapter.name(), gguf::keys::kInvocationTokens)};
  }
  RECUA_ASSIGN_OR_RETURN(const auto found_alpha, adapter.find_f32(gguf::keys::kLoraAlpha));
  const float alpha = found_alpha.value_or(0.0F);
  if (!std::isfinite(alpha)) {
    return corrupt(
        fmt::format("{}: {} is {}, must be finite", adapter.name(), gguf::keys::kLoraAlpha, alpha));
  }
  RECUA_ASSIGN_OR_RETURN(const Pairs pairs, find_pairs(adapter));
  for (const auto& [name, pair] : pairs)
    RECUA_RETURN_IF_ERROR(check_pair(adapter, model, name, pair));
  RECUA_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, pack(adapter, pairs, alpha, scale));
  // Hashes of a file's chunks are remembered by its name: another scale must be another file.
  const std::string hash = to_hex(sha256(bytes)).substr(0, 16);
  RECUA_ASSIGN_OR_RETURN(
      gguf::GgufFile packed,
      gguf::GgufFile::parse_owned(std::move(bytes), fmt::format("{}#{}", path.string(), hash)));
  return model.append(std::move(packed));
}

bool has_lora(const gguf::GgufFile& model) {
  return std::ranges::any_of(model.tensors(), [](const gguf::TensorInfo& tensor) {
    return tensor.name.ends_with(kLoraA) || tensor.name.ends_with(kLoraB);
  });
}

}  // namespace recua::model
