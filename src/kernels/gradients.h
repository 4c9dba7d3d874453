#pragma once
/// Backward passes of element-wise operators (kernels/row_ops.h), on one row each. No alignment.

#include <cstddef>

namespace recua::kernels {

namespace scalar {
/// Of out = silu(gate) * up, given d_out:
///   d_up = d_out * silu(gate)          silu(x) = x s, s = 1 / (1 + exp(-x))
///   d_gate = d_out * up * s (1 + gate (1 - s))
/// d_gate may be gate, d_up may be up. Within 2^-19 relative of the sum's larger term.
void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up);
}  // namespace scalar

namespace avx2 {
void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up);
}  // namespace avx2

}  // namespace recua::kernels
