#pragma once
/// Stored weights back to floats: the exact, slow yardstick for every kernel.
///
/// The arithmetic of each type is the formula in quant/blocks.h in float, one rounding per
/// operation in the order written there, scales multiplied first. All engines agree on it, so the
/// results are bit-identical to theirs (tests/golden/random).

#include <cstddef>

#include "quant/data_type.h"

namespace recua::quant {

/// out[0..n) = the elements of a row. blocks: row_bytes(type, n) bytes, any alignment; out: n
/// floats. n is a multiple of the type's block size (a CHECK). Any bytes give some floats, possibly
/// infinite or NaN. Threads: any.
void dequantize_row(DataType type, const std::byte* blocks, std::size_t n, float* out);

}  // namespace recua::quant
