#pragma once
/// Element-wise operators over many values, on all threads.

#include <cstddef>

#include "train/team.h"

namespace recua::train {

/// out = a + b.   out may be a or b.
void add(Team& team, std::size_t n, const float* a, const float* b, float* out);

/// out = silu(gate) * up.
void silu_mul(Team& team, std::size_t n, const float* gate, const float* up, float* out);
/// d_gate may be gate, d_up may be up.
void silu_mul_backward(Team& team, std::size_t n, const float* gate, const float* up,
                       const float* d_out, float* d_gate, float* d_up);

/// Sum of squares in f64, in an order that depends on n only.
double sum_of_squares(Team& team, std::size_t n, const float* x);

}  // namespace recua::train
