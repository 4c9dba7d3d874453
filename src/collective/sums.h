#pragma once
/// Sums of the ranks' values, element by element, in the order of ranks: ((v0 + v1) + v2) + ...
/// Whatever else differs, the order does not, so every rank gets the same bits.

#include <cstddef>
#include <span>

#include "collective/wire_format.h"

namespace recua::collective {

/// sum[i] += more[i]; they do not overlap.
using AddTo = void (*)(float* __restrict sum, const float* __restrict more, std::size_t n);
/// Loops of all widths that this CPU has, the widest first: the same bits. Of what lies in the
/// nearest caches AVX2 adds twice as much in a time as plain code, and AVX-512 1.5 times that.
std::span<const AddTo> add_loops();

/// values[i] = the sum over ranks r of number i of parts[r]; parts[own] is not looked at, values is
/// that part. parts[r]: wire_bytes(format, values.size()) bytes, 4-byte aligned, not overlapping
/// values.
void sum_in_rank_order(WireFormat format, std::span<const std::byte* const> parts, std::size_t own,
                       std::span<float> values);

}  // namespace recua::collective
