#pragma once
/// Floats to stored weights, with a search for the scales that lose least.
///
/// F32, F16 and BF16 keep what they can (quant/half.h), NaN and infinity included. The block types
/// hold only finite numbers: NaN becomes 0 and what is larger than 65504, the largest F16, becomes
/// +-65504; whoever must not do that silently asks first_not_finite(). Numbers so small that no
/// scale can hold them (below 2^-25) become 0. The result has finite scales, whatever the input.
///
/// Idea of the search (quant/fit.h): for each group try a few scales, solve weighted least squares
/// for the best one given the rounded numbers, keep the one with the smallest error; then, for the
/// types of 256, round the groups' scales, and solve again for the two numbers that scale those.

#include <cstddef>
#include <span>

#include "quant/data_type.h"

namespace recua::quant {

/// out: row_bytes(type, n) bytes, any alignment. n is a multiple of the type's block size (a
/// CHECK). Rows are independent, the same input gives the same bytes. Threads: any.
void quantize_row(DataType type, const float* x, std::size_t n, std::byte* out);

/// The index of the first NaN or infinity, or x.size().
std::size_t first_not_finite(std::span<const float> x);

}  // namespace recua::quant
