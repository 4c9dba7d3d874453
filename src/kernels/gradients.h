#pragma once
/// What training does element by element: backward passes of kernels/row_ops.h, and the optimizer's
/// step. No alignment.

#include <cstddef>

namespace recua::kernels {

/// One step of AdamW for n parameters (train/optimizer.h has the formula):
///   g = gradient * factor     m <- b1 m + (1 - b1) g     v <- b2 v + (1 - b2) g g
///   p <- keep p - rate m / (sqrt(v v_scale) + eps)
struct AdamArgs {
  const float* gradient = nullptr;
  float* p = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  std::size_t n = 0;
  float factor = 1.0F;
  float b1 = 0.0F;
  float b2 = 0.0F;
  float keep = 1.0F;
  float rate = 0.0F;
  float v_scale = 1.0F;
  float eps = 0.0F;
};

namespace scalar {
/// Of out = silu(gate) * up, given d_out:
///   d_up = d_out * silu(gate)          silu(x) = x s, s = 1 / (1 + exp(-x))
///   d_gate = d_out * up * s (1 + gate (1 - s))
/// d_gate may be gate, d_up may be up. Within 2^-19 relative of the sum's larger term.
void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up);

/// Every operation is rounded as written: the same bits on every instruction set.
void adam(const AdamArgs& args);
}  // namespace scalar

namespace avx2 {
void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up);
void adam(const AdamArgs& args);
}  // namespace avx2

namespace neon {
void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up);
void adam(const AdamArgs& args);
}  // namespace neon

}  // namespace recua::kernels
