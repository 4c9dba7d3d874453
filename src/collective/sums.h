#pragma once
/// Sums of the ranks' values, element by element, in the order of ranks: ((v0 + v1) + v2) + ...
/// Whatever else differs, the order does not, so every rank gets the same bits.

#include <cstddef>
#include <span>

namespace recua::collective {

/// values[i] = the sum over ranks r of parts[r][i]; parts[own] is values itself and is not looked
/// at. parts[r]: [values.size()], r != own, must not overlap values.
void sum_in_rank_order(std::span<const float* const> parts, std::size_t own,
                       std::span<float> values);

}  // namespace recua::collective
