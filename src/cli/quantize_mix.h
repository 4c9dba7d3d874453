#pragma once
/// Which type each tensor of a model gets when a user asks for "Q4_K_M".
///
/// A mix is a base type and exceptions: tensors whose error costs most (values, the down
/// projection, the output) get more bits. The names and exceptions are those that published GGUF
/// files use, so a file made here has the sizes and the quality that its name promises elsewhere.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "quant/data_type.h"

namespace recua::cli {

struct QuantizeMix {
  std::string_view name;    // "Q4_K_M"
  quant::DataType base;     // What most tensors get.
  std::uint32_t file_type;  // The number of general.file_type.
  std::string_view about;   // For --help.
};

/// All of them, by falling size.
std::span<const QuantizeMix> quantize_mixes();

/// By name, in any case. "Q3_K", "Q4_K" and "Q5_K" mean their _M.
std::optional<QuantizeMix> find_mix(std::string_view name);

/// What the exceptions depend on.
struct MixModel {
  std::uint32_t n_layers = 0;
  std::uint32_t n_heads = 1;
  std::uint32_t n_kv_heads = 1;
  std::uint32_t n_experts = 0;
  bool tied = false;  // No output.weight: token_embd.weight is the output too.
};

struct MixTensor {
  std::string_view name;
  std::size_t n_dims = 1;
  std::uint64_t row = 1;  // Elements of a row, which must be whole blocks.
};

/// Whether a mix changes this tensor at all: matrices do, but neither norms, biases and other
/// vectors nor the router of the experts, which stay as they are.
bool mix_applies(const MixTensor& tensor);

/// The type of a tensor that the mix applies to. pure: no exceptions but the output-independent
/// fallback: a row that is not a multiple of 256 takes the next larger type of 32 (Q4_K -> Q5_0,
/// ...), one that is not a multiple of 32 takes F16.
quant::DataType mixed_type(const QuantizeMix& mix, const MixModel& model, const MixTensor& tensor,
                           bool pure);

}  // namespace recua::cli
