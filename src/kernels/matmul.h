#pragma once
/// out[t][out_offset + r] = sum over i of w[r, i] * x[t, i]: some rows of a stored weight matrix
/// times some activation rows.
///
/// Row-invariant: an output is computed by the same operations in the same order whatever n_rows
/// and n_tokens are and wherever in them it stands, so a caller may cut the work as it likes.
/// Blocks of quantized types (32 or 256 elements) are summed exactly in integers, from activations
/// of activation_kind(type); the block sums, and all products of float types, are added in a fixed
/// order in f32 (scalar: f64).
/// Between instruction sets results differ by rounding only: at most n_in * 2^-23 of the sum of
/// absolute products (f32 sums of at most n_in / 4 terms per lane).
///
/// Where it pays, a variant works on several tokens per pass over the weights; a caller with many
/// tokens gives as many weight rows as stay in its second-level cache (about 64 KiB).

#include <cstddef>

#include "quant/data_type.h"

namespace recua::kernels {

struct MatmulArgs {
  const std::byte* w = nullptr;  // Row 0, blocks as in quant/blocks.h; any alignment.
  std::size_t w_stride = 0;      // Bytes from row to row; packed: from group to group.
  std::size_t n_rows = 0;
  std::size_t n_in = 0;                 // A multiple of the type's block size.
  const std::byte* const* x = nullptr;  // [n_tokens] rows, see kernels/activation.h; 4-aligned.
  float* const* out = nullptr;          // [n_tokens] rows.
  std::size_t out_offset = 0;           // Column of out for weight row 0.
  std::size_t n_tokens = 0;
};

using MatmulFn = void (*)(const MatmulArgs&);

namespace scalar {
template <quant::DataType kType>
void matmul(const MatmulArgs& args);
}
namespace avx2 {
template <quant::DataType kType>
void matmul(const MatmulArgs& args);

/// The same from packed weights (kernels/packed.h), of which args.w is a whole group. Sums in
/// another order than matmul() does, so between the two results differ by rounding as above; within
/// each they are row-invariant. It cuts many tokens and rows into what the caches hold by itself.
/// The scalar twin is matmul() on what unpack_blocks() gives.
template <quant::DataType kType>
void packed_matmul(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kF32>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kF16>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kBF16>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ4_0>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ8_0>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ4_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ6_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ4_1>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ5_0>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ5_1>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ2_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ3_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ5_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kIQ4_NL>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kIQ4_XS>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kMXFP4>(const MatmulArgs& args);
}  // namespace avx2
namespace avx512 {
/// As avx2::packed_matmul(); quantized types from activations of kBlocks32 and kBlocks256.
template <quant::DataType kType>
void packed_matmul(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kF32>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kF16>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kBF16>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ4_0>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ8_0>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ4_K>(const MatmulArgs& args);
template <>
void packed_matmul<quant::DataType::kQ6_K>(const MatmulArgs& args);
}  // namespace avx512
namespace neon {
/// By which instructions the products of bytes are summed; all is one source.
enum class Products {
  kWiden,   // Widening multiplications (kNeon).
  kDot,     // SDOT (kDotprod).
  kMatrix,  // SMMLA, and SDOT for one token alone (kI8mm).
};

/// For the quantized types. The three differ in no bit, and neither do rows and packed weights.
template <Products kProducts, quant::DataType kType>
void matmul(const MatmulArgs& args);
template <Products kProducts, quant::DataType kType>
void packed_matmul(const MatmulArgs& args);
/// For F32, F16 and BF16.
template <quant::DataType kType>
void matmul_float(const MatmulArgs& args);
template <quant::DataType kType>
void packed_matmul_float(const MatmulArgs& args);
}  // namespace neon

}  // namespace recua::kernels
