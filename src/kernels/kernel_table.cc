#include "kernels/kernel_table.h"

#include "base/check.h"

namespace recua::kernels {
namespace {

using quant::DataType;

constexpr void put(KernelTable& table, DataType type, MatmulFn fn) {
  table.matmul_by_type[static_cast<std::size_t>(type)] = fn;
}

constexpr void put(KernelTable& table, ActivationKind kind, QuantizeFn fn) {
  table.quantize_by_kind[static_cast<std::size_t>(kind)] = fn;
}

constexpr KernelTable make_scalar() {
  KernelTable t{
      .instruction_set = sys::InstructionSet::kScalar,
      .matmul_by_type = {},
      .packed_matmul_by_type = {},
      .packed_kind_by_type = {},
      .quantize_by_kind = {},
      .rms_norm = scalar::rms_norm,
      .silu_mul = scalar::silu_mul,
      .add = scalar::add,
      .scale_add = scalar::scale_add,
      .rope_interleaved = scalar::rope_interleaved,
      .rope_split_half = scalar::rope_split_half,
      .f32_to_f16 = scalar::f32_to_f16,
      .attention_scores = scalar::attention_scores,
      .softmax_part = scalar::softmax_part,
      .attention_values = scalar::attention_values,
      .merge_part = scalar::merge_part,
      .widen_keys = scalar::widen_keys,
      .widen_values = scalar::widen_values,
      .cache_q8_0 = scalar::cache_q8_0,
      .cache_q4_0 = scalar::cache_q4_0,
      .gemm = scalar::gemm,
      .silu_mul_backward = scalar::silu_mul_backward,
      .adam = scalar::adam,
  };
  put(t, ActivationKind::kQ8x32, scalar::quantize_q8x32);
  put(t, ActivationKind::kQ8x256, scalar::quantize_q8x256);
  put(t, ActivationKind::kQ16x32, scalar::quantize_q16x32);
  put(t, ActivationKind::kBlocks32, scalar::quantize_blocks32);
  put(t, ActivationKind::kBlocks256, scalar::quantize_blocks256);
  put(t, DataType::kF32, scalar::matmul<DataType::kF32>);
  put(t, DataType::kF16, scalar::matmul<DataType::kF16>);
  put(t, DataType::kBF16, scalar::matmul<DataType::kBF16>);
  put(t, DataType::kQ8_0, scalar::matmul<DataType::kQ8_0>);
  put(t, DataType::kQ4_0, scalar::matmul<DataType::kQ4_0>);
  put(t, DataType::kQ4_1, scalar::matmul<DataType::kQ4_1>);
  put(t, DataType::kQ5_0, scalar::matmul<DataType::kQ5_0>);
  put(t, DataType::kQ5_1, scalar::matmul<DataType::kQ5_1>);
  put(t, DataType::kQ2_K, scalar::matmul<DataType::kQ2_K>);
  put(t, DataType::kQ3_K, scalar::matmul<DataType::kQ3_K>);
  put(t, DataType::kQ4_K, scalar::matmul<DataType::kQ4_K>);
  put(t, DataType::kQ5_K, scalar::matmul<DataType::kQ5_K>);
  put(t, DataType::kQ6_K, scalar::matmul<DataType::kQ6_K>);
  put(t, DataType::kIQ4_NL, scalar::matmul<DataType::kIQ4_NL>);
  put(t, DataType::kIQ4_XS, scalar::matmul<DataType::kIQ4_XS>);
  put(t, DataType::kMXFP4, scalar::matmul<DataType::kMXFP4>);
  return t;
}

[[maybe_unused]] constexpr void put_packed(KernelTable& table, DataType type, ActivationKind kind,
                                           MatmulFn fn) {
  table.packed_matmul_by_type[static_cast<std::size_t>(type)] = fn;
  table.packed_kind_by_type[static_cast<std::size_t>(type)] = kind;
}

#if defined(__x86_64__)
constexpr KernelTable make_avx2() {
  KernelTable t{
      .instruction_set = sys::InstructionSet::kAvx2,
      .matmul_by_type = {},
      .packed_matmul_by_type = {},
      .packed_kind_by_type = {},
      .quantize_by_kind = {},
      .rms_norm = avx2::rms_norm,
      .silu_mul = avx2::silu_mul,
      .add = avx2::add,
      .scale_add = avx2::scale_add,
      .rope_interleaved = avx2::rope_interleaved,
      .rope_split_half = avx2::rope_split_half,
      .f32_to_f16 = avx2::f32_to_f16,
      .attention_scores = avx2::attention_scores,
      .softmax_part = avx2::softmax_part,
      .attention_values = avx2::attention_values,
      .merge_part = avx2::merge_part,
      .widen_keys = avx2::widen_keys,
      .widen_values = avx2::widen_values,
      .cache_q8_0 = avx2::cache_q8_0,
      .cache_q4_0 = avx2::cache_q4_0,
      .gemm = avx2::gemm,
      .silu_mul_backward = avx2::silu_mul_backward,
      .adam = avx2::adam,
  };
  put(t, ActivationKind::kQ8x32, avx2::quantize_q8x32);
  put(t, ActivationKind::kQ8x256, avx2::quantize_q8x256);
  put(t, ActivationKind::kQ16x32, avx2::quantize_q16x32);
  put(t, DataType::kF32, avx2::matmul<DataType::kF32>);
  put(t, DataType::kF16, avx2::matmul<DataType::kF16>);
  put(t, DataType::kBF16, avx2::matmul<DataType::kBF16>);
  put(t, DataType::kQ8_0, avx2::matmul<DataType::kQ8_0>);
  put(t, DataType::kQ4_0, avx2::matmul<DataType::kQ4_0>);
  put(t, DataType::kQ4_1, avx2::matmul<DataType::kQ4_1>);
  put(t, DataType::kQ5_0, avx2::matmul<DataType::kQ5_0>);
  put(t, DataType::kQ5_1, avx2::matmul<DataType::kQ5_1>);
  put(t, DataType::kQ2_K, avx2::matmul<DataType::kQ2_K>);
  put(t, DataType::kQ3_K, avx2::matmul<DataType::kQ3_K>);
  put(t, DataType::kQ4_K, avx2::matmul<DataType::kQ4_K>);
  put(t, DataType::kQ5_K, avx2::matmul<DataType::kQ5_K>);
  put(t, DataType::kQ6_K, avx2::matmul<DataType::kQ6_K>);
  put(t, DataType::kIQ4_NL, avx2::matmul<DataType::kIQ4_NL>);
  put(t, DataType::kIQ4_XS, avx2::matmul<DataType::kIQ4_XS>);
  put(t, DataType::kMXFP4, avx2::matmul<DataType::kMXFP4>);
  put_packed(t, DataType::kF32, ActivationKind::kF32, avx2::packed_matmul<DataType::kF32>);
  put_packed(t, DataType::kF16, ActivationKind::kF32, avx2::packed_matmul<DataType::kF16>);
  put_packed(t, DataType::kBF16, ActivationKind::kF32, avx2::packed_matmul<DataType::kBF16>);
  put_packed(t, DataType::kQ8_0, ActivationKind::kQ16x32, avx2::packed_matmul<DataType::kQ8_0>);
  put_packed(t, DataType::kQ4_0, ActivationKind::kQ8x32, avx2::packed_matmul<DataType::kQ4_0>);
  put_packed(t, DataType::kQ4_K, ActivationKind::kQ8x256, avx2::packed_matmul<DataType::kQ4_K>);
  put_packed(t, DataType::kQ6_K, ActivationKind::kQ8x256, avx2::packed_matmul<DataType::kQ6_K>);
  put_packed(t, DataType::kQ4_1, ActivationKind::kQ8x32, avx2::packed_matmul<DataType::kQ4_1>);
  put_packed(t, DataType::kQ5_0, ActivationKind::kQ8x32, avx2::packed_matmul<DataType::kQ5_0>);
  put_packed(t, DataType::kQ5_1, ActivationKind::kQ8x32, avx2::packed_matmul<DataType::kQ5_1>);
  put_packed(t, DataType::kQ2_K, ActivationKind::kQ8x256, avx2::packed_matmul<DataType::kQ2_K>);
  put_packed(t, DataType::kQ3_K, ActivationKind::kQ8x256, avx2::packed_matmul<DataType::kQ3_K>);
  put_packed(t, DataType::kQ5_K, ActivationKind::kQ8x256, avx2::packed_matmul<DataType::kQ5_K>);
  put_packed(t, DataType::kIQ4_NL, ActivationKind::kQ16x32, avx2::packed_matmul<DataType::kIQ4_NL>);
  put_packed(t, DataType::kIQ4_XS, ActivationKind::kQ16x32, avx2::packed_matmul<DataType::kIQ4_XS>);
  put_packed(t, DataType::kMXFP4, ActivationKind::kQ8x32, avx2::packed_matmul<DataType::kMXFP4>);
  return t;
}

// What gains nothing from wider vectors, or has no packed form, is AVX2's.
constexpr KernelTable make_avx512() {
  KernelTable t = make_avx2();
  t.instruction_set = sys::InstructionSet::kAvx512;
  t.attention_scores = avx512::attention_scores;
  t.softmax_part = avx512::softmax_part;
  t.attention_values = avx512::attention_values;
  t.gemm = avx512::gemm;
  put(t, ActivationKind::kBlocks32, avx512::quantize_blocks32);
  put(t, ActivationKind::kBlocks256, avx512::quantize_blocks256);
  put_packed(t, DataType::kF32, ActivationKind::kF32, avx512::packed_matmul<DataType::kF32>);
  put_packed(t, DataType::kF16, ActivationKind::kF32, avx512::packed_matmul<DataType::kF16>);
  put_packed(t, DataType::kBF16, ActivationKind::kF32, avx512::packed_matmul<DataType::kBF16>);
  put_packed(t, DataType::kQ8_0, ActivationKind::kBlocks32, avx512::packed_matmul<DataType::kQ8_0>);
  put_packed(t, DataType::kQ4_0, ActivationKind::kBlocks32, avx512::packed_matmul<DataType::kQ4_0>);
  put_packed(t, DataType::kQ4_K, ActivationKind::kBlocks256,
             avx512::packed_matmul<DataType::kQ4_K>);
  put_packed(t, DataType::kQ6_K, ActivationKind::kBlocks256,
             avx512::packed_matmul<DataType::kQ6_K>);
  return t;
}
#endif

#if defined(__aarch64__)
template <neon::Products kProducts, DataType kType>
constexpr void put_quantized(KernelTable& table) {
  put(table, kType, neon::matmul<kProducts, kType>);
  put_packed(table, kType, activation_kind(kType), neon::packed_matmul<kProducts, kType>);
}

template <DataType kType>
constexpr void put_float(KernelTable& table) {
  put(table, kType, neon::matmul_float<kType>);
  put_packed(table, kType, ActivationKind::kF32, neon::packed_matmul_float<kType>);
}

template <neon::Products kProducts>
constexpr KernelTable make_neon(sys::InstructionSet set) {
  KernelTable t{
      .instruction_set = set,
      .matmul_by_type = {},
      .packed_matmul_by_type = {},
      .packed_kind_by_type = {},
      .quantize_by_kind = {},
      .rms_norm = neon::rms_norm,
      .silu_mul = neon::silu_mul,
      .add = neon::add,
      .scale_add = neon::scale_add,
      .rope_interleaved = neon::rope_interleaved,
      .rope_split_half = neon::rope_split_half,
      .f32_to_f16 = neon::f32_to_f16,
      .attention_scores = neon::attention_scores,
      .softmax_part = neon::softmax_part,
      .attention_values = neon::attention_values,
      .merge_part = neon::merge_part,
      .widen_keys = neon::widen_keys,
      .widen_values = neon::widen_values,
      .cache_q8_0 = neon::cache_q8_0,
      .cache_q4_0 = neon::cache_q4_0,
      .gemm = neon::gemm,
      .silu_mul_backward = neon::silu_mul_backward,
      .adam = neon::adam,
  };
  put(t, ActivationKind::kQ8x32, neon::quantize_q8x32);
  put(t, ActivationKind::kQ8x256, neon::quantize_q8x256);
  put_float<DataType::kF32>(t);
  put_float<DataType::kF16>(t);
  put_float<DataType::kBF16>(t);
  put_quantized<kProducts, DataType::kQ8_0>(t);
  put_quantized<kProducts, DataType::kQ4_0>(t);
  put_quantized<kProducts, DataType::kQ4_1>(t);
  put_quantized<kProducts, DataType::kQ5_0>(t);
  put_quantized<kProducts, DataType::kQ5_1>(t);
  put_quantized<kProducts, DataType::kQ2_K>(t);
  put_quantized<kProducts, DataType::kQ3_K>(t);
  put_quantized<kProducts, DataType::kQ4_K>(t);
  put_quantized<kProducts, DataType::kQ5_K>(t);
  put_quantized<kProducts, DataType::kQ6_K>(t);
  put_quantized<kProducts, DataType::kIQ4_NL>(t);
  put_quantized<kProducts, DataType::kIQ4_XS>(t);
  put_quantized<kProducts, DataType::kMXFP4>(t);
  return t;
}
#endif

constexpr KernelTable kScalarTable = make_scalar();
#if defined(__x86_64__)
constexpr KernelTable kAvx2Table = make_avx2();
constexpr KernelTable kAvx512Table = make_avx512();
#elif defined(__aarch64__)
constexpr KernelTable kNeonTable = make_neon<neon::Products::kWiden>(sys::InstructionSet::kNeon);
constexpr KernelTable kDotprodTable =
    make_neon<neon::Products::kDot>(sys::InstructionSet::kDotprod);
constexpr KernelTable kI8mmTable = make_neon<neon::Products::kMatrix>(sys::InstructionSet::kI8mm);
#endif

}  // namespace

const KernelTable& kernel_table(sys::InstructionSet set) {
  RECUA_CHECK(sys::supported(set));
#if defined(__x86_64__)
  if (set == sys::InstructionSet::kAvx2) return kAvx2Table;
  if (set == sys::InstructionSet::kAvx512) return kAvx512Table;
#elif defined(__aarch64__)
  if (set == sys::InstructionSet::kNeon) return kNeonTable;
  if (set == sys::InstructionSet::kDotprod) return kDotprodTable;
  if (set == sys::InstructionSet::kI8mm) return kI8mmTable;
#endif
  return kScalarTable;
}

}  // namespace recua::kernels
