#include "cli/quantize_mix.h"

#include <array>
#include <charconv>

namespace recua::cli {
namespace {

using quant::DataType;

constexpr std::array kMixes = {
    QuantizeMix{"F32", DataType::kF32, 0, "32-bit floats"},
    QuantizeMix{"F16", DataType::kF16, 1, "16-bit floats"},
    QuantizeMix{"BF16", DataType::kBF16, 32, "16-bit floats with the range of 32-bit ones"},
    QuantizeMix{"Q8_0", DataType::kQ8_0, 7, "8.5 bits, hardly any loss"},
    QuantizeMix{"Q6_K", DataType::kQ6_K, 18, "6.6 bits, very little loss"},
    QuantizeMix{"Q5_1", DataType::kQ5_1, 9, "6.0 bits, older; prefer Q5_K_M"},
    QuantizeMix{"Q5_K_M", DataType::kQ5_K, 17, "5.7 bits, little loss"},
    QuantizeMix{"Q5_K_S", DataType::kQ5_K, 16, "5.5 bits, little loss"},
    QuantizeMix{"Q5_0", DataType::kQ5_0, 8, "5.5 bits, older; prefer Q5_K_S"},
    QuantizeMix{"Q4_1", DataType::kQ4_1, 3, "5.0 bits, older; prefer Q4_K_M"},
    QuantizeMix{"Q4_K_M", DataType::kQ4_K, 15, "4.9 bits, the usual choice"},
    QuantizeMix{"Q4_K_S", DataType::kQ4_K, 14, "4.7 bits"},
    QuantizeMix{"Q4_0", DataType::kQ4_0, 2, "4.5 bits, fast and plain"},
    QuantizeMix{"IQ4_NL", DataType::kIQ4_NL, 25, "4.5 bits, uneven steps: less loss than Q4_0"},
    QuantizeMix{"IQ4_XS", DataType::kIQ4_XS, 30, "4.3 bits, uneven steps: less loss than Q4_0"},
    QuantizeMix{"MXFP4", DataType::kMXFP4, 38, "4.3 bits, small floats; more loss than Q4_0"},
    QuantizeMix{"Q3_K_L", DataType::kQ3_K, 13, "4.3 bits, noticeable loss"},
    QuantizeMix{"Q3_K_M", DataType::kQ3_K, 12, "4.0 bits, noticeable loss"},
    QuantizeMix{"Q3_K_S", DataType::kQ3_K, 11, "3.6 bits, large loss"},
    QuantizeMix{"Q2_K", DataType::kQ2_K, 10, "3.2 bits, large loss"},
    QuantizeMix{"Q2_K_S", DataType::kQ2_K, 21, "2.9 bits, very large loss"},
};

// The numbers by which the exceptions below tell the mixes apart.
enum : std::uint32_t {
  kQ2K = 10,
  kQ3KS = 11,
  kQ3KM = 12,
  kQ3KL = 13,
  kQ4KS = 14,
  kQ4KM = 15,
  kQ5KM = 17,
  kQ2KS = 21,
};

bool same_ignoring_case(std::string_view a, std::string_view b) {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; };
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (upper(a[i]) != upper(b[i])) return false;
  }
  return true;
}

/// The layer of "blk.7.attn_v.weight"; 0 for tensors outside the layers.
std::uint32_t layer_of(std::string_view name) {
  std::uint32_t layer = 0;
  if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

/// The layers that get more bits in the _M mixes: the first and last eighth, and every third
/// between.
bool deserves_more(std::uint32_t layer, std::uint32_t n_layers) {
  const std::uint32_t eighth = n_layers / 8;
  return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

DataType type_of_values(const QuantizeMix& mix, const MixModel& model, std::uint32_t layer) {
  if (model.n_experts == 8) return DataType::kQ8_0;  // Small beside the experts, and used by all.
  const bool grouped = model.n_kv_heads > 0 && model.n_heads / model.n_kv_heads >= 4;
  switch (mix.file_type) {
    case kQ2K:
      return grouped ? DataType::kQ4_K : DataType::kQ3_K;
    case kQ2KS:
      return grouped ? DataType::kQ4_K : mix.base;
    case kQ3KM:
      return layer < 2 ? DataType::kQ5_K : DataType::kQ4_K;
    case kQ3KL:
      return DataType::kQ5_K;
    case kQ4KS:
      return layer < 4 ? DataType::kQ5_K : mix.base;
    case kQ4KM:
    case kQ5KM:
      return deserves_more(layer, model.n_layers) ? DataType::kQ6_K : mix.base;
    default:
      return mix.base;
  }
}

DataType type_of_ffn_down(const QuantizeMix& mix, const MixModel& model, std::uint32_t layer) {
  switch (mix.file_type) {
    case kQ2K:
      return DataType::kQ3_K;
    case kQ2KS:
      return layer < model.n_layers / 8 ? DataType::kQ4_K : mix.base;
    case kQ3KM:
      return layer < model.n_layers / 16 ? DataType::kQ5_K : DataType::kQ4_K;
    case kQ3KL:
      return DataType::kQ5_K;
    case kQ4KS:
      return layer < model.n_layers / 8 ? DataType::kQ5_K : mix.base;
    case kQ4KM:
    case kQ5KM:
      return deserves_more(layer, model.n_layers) ? DataType::kQ6_K : mix.base;
    default:
      return mix.base;
  }
}

DataType type_of_attn_output(const QuantizeMix& mix, const MixModel& model) {
  const bool small = mix.file_type >= kQ2K && mix.file_type <= kQ4KM;
  if (model.n_experts == 8) return small && mix.file_type != kQ3KL ? DataType::kQ5_K : mix.base;
  switch (mix.file_type) {
    case kQ2K:
      return DataType::kQ3_K;
    case kQ3KM:
      return DataType::kQ4_K;
    case kQ3KL:
      return DataType::kQ5_K;
    default:
      return mix.base;
  }
}

DataType type_of_fused_qkv(const QuantizeMix& mix) {
  switch (mix.file_type) {
    case kQ3KM:
    case kQ3KL:
      return DataType::kQ4_K;
    case kQ4KM:
      return DataType::kQ5_K;
    case kQ5KM:
      return DataType::kQ6_K;
    default:
      return mix.base;
  }
}

DataType with_exceptions(const QuantizeMix& mix, const MixModel& model, const MixTensor& tensor) {
  const std::string_view name = tensor.name;
  const auto is = [name](std::string_view part) {
    return name.find(part) != std::string_view::npos;
  };
  const std::uint32_t layer = layer_of(name);
  if (name == "output.weight" || (model.tied && name == "token_embd.weight")) {
    // Every logit goes through it. Q8_0 where Q6_K cannot be.
    if (mix.base == DataType::kQ8_0 || tensor.row % 256 != 0) return DataType::kQ8_0;
    return DataType::kQ6_K;
  }
  if (is("attn_v.weight")) return type_of_values(mix, model, layer);
  if (is("attn_k.weight") && model.n_experts == 8) return DataType::kQ8_0;
  if (is("attn_output.weight")) return type_of_attn_output(mix, model);
  if (is("attn_qkv.weight")) return type_of_fused_qkv(mix);
  if (is("ffn_down")) return type_of_ffn_down(mix, model, layer);
  return mix.base;
}

/// The next larger type whose blocks fill the row.
DataType fitting(DataType type, std::uint64_t row) {
  if (row % quant::traits(type).block_size == 0) return type;
  switch (type) {
    case DataType::kQ2_K:
    case DataType::kQ3_K:
      type = DataType::kQ4_0;
      break;
    case DataType::kQ4_K:
      type = DataType::kQ5_0;
      break;
    case DataType::kQ5_K:
      type = DataType::kQ5_1;
      break;
    case DataType::kQ6_K:
      type = DataType::kQ8_0;
      break;
    case DataType::kIQ4_XS:
      type = DataType::kIQ4_NL;
      break;
    default:
      break;
  }
  return row % quant::traits(type).block_size == 0 ? type : DataType::kF16;
}

}  // namespace

std::span<const QuantizeMix> quantize_mixes() { return kMixes; }

std::optional<QuantizeMix> find_mix(std::string_view name) {
  for (const std::string_view plain : {"Q3_K", "Q4_K", "Q5_K"}) {
    if (same_ignoring_case(name, plain)) return find_mix(std::string(plain) + "_M");
  }
  for (const QuantizeMix& mix : kMixes) {
    if (same_ignoring_case(name, mix.name)) return mix;
  }
  return std::nullopt;
}

bool mix_applies(const MixTensor& tensor) {
  if (tensor.n_dims < 2 || !tensor.name.ends_with(".weight")) return false;
  if (tensor.name.ends_with("_norm.weight")) return false;
  return tensor.name.find("ffn_gate_inp") == std::string_view::npos;
}

quant::DataType mixed_type(const QuantizeMix& mix, const MixModel& model, const MixTensor& tensor,
                           bool pure) {
  const bool is_float = quant::traits(mix.base).block_size == 1;
  if (is_float) return mix.base;
  return fitting(pure ? mix.base : with_exceptions(mix, model, tensor), tensor.row);
}

}  // namespace recua::cli
