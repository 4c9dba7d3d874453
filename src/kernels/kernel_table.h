#pragma once
/// One instruction set's kernels as function pointers. Chosen once at start-up; a look-up per
/// operator call, none in an inner loop.

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gradients.h"
#include "kernels/matmul.h"
#include "kernels/row_ops.h"
#include "sys/cpu_features.h"

namespace recua::kernels {

struct KernelTable {
  sys::InstructionSet instruction_set = sys::InstructionSet::kScalar;

  /// By number of the data type; null where there is no such type.
  std::array<MatmulFn, quant::kDataTypeEnd> matmul_by_type{};
  [[nodiscard]] MatmulFn matmul(quant::DataType type) const {
    return matmul_by_type[static_cast<std::size_t>(type)];
  }

  /// From packed weights; null where the type or this instruction set has no such kernel.
  std::array<MatmulFn, quant::kDataTypeEnd> packed_matmul_by_type{};
  [[nodiscard]] MatmulFn packed_matmul(quant::DataType type) const {
    return packed_matmul_by_type[static_cast<std::size_t>(type)];
  }
  /// What packed_matmul(type) takes, if there is such a kernel.
  std::array<ActivationKind, quant::kDataTypeEnd> packed_kind_by_type{};
  [[nodiscard]] ActivationKind packed_activation_kind(quant::DataType type) const {
    return packed_kind_by_type[static_cast<std::size_t>(type)];
  }

  /// How rows of activations become those of a kind; null for kF32 and for what no kernel of this
  /// instruction set takes.
  std::array<QuantizeFn, 6> quantize_by_kind{};
  [[nodiscard]] QuantizeFn quantize(ActivationKind kind) const {
    return quantize_by_kind[static_cast<std::size_t>(kind)];
  }

  decltype(&scalar::rms_norm) rms_norm = nullptr;
  decltype(&scalar::silu_mul) silu_mul = nullptr;
  decltype(&scalar::add) add = nullptr;
  decltype(&scalar::scale_add) scale_add = nullptr;
  decltype(&scalar::rope_interleaved) rope_interleaved = nullptr;
  decltype(&scalar::rope_split_half) rope_split_half = nullptr;
  decltype(&scalar::f32_to_f16) f32_to_f16 = nullptr;
  decltype(&scalar::attention_scores) attention_scores = nullptr;
  decltype(&scalar::softmax_part) softmax_part = nullptr;
  decltype(&scalar::attention_values) attention_values = nullptr;
  decltype(&scalar::merge_part) merge_part = nullptr;
  decltype(&scalar::widen_keys) widen_keys = nullptr;
  decltype(&scalar::widen_values) widen_values = nullptr;
  decltype(&scalar::cache_q8_0) cache_q8_0 = nullptr;
  decltype(&scalar::cache_q4_0) cache_q4_0 = nullptr;

  // For training.
  decltype(&scalar::gemm) gemm = nullptr;
  decltype(&scalar::silu_mul_backward) silu_mul_backward = nullptr;
  decltype(&scalar::adam) adam = nullptr;
};

/// The table of a set that this CPU supports (a CHECK: sys::choose_instruction_set() asks first).
const KernelTable& kernel_table(sys::InstructionSet set);

}  // namespace recua::kernels
