#include "kernels/gradients.h"

#include <cmath>

namespace recua::kernels::scalar {

void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up) {
  for (std::size_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float y = up[i];
    const float s = 1.0F / (1.0F + std::exp(-x > 88.0F ? 88.0F : -x));
    d_gate[i] = d_out[i] * y * s * (1.0F + x * (1.0F - s));
    d_up[i] = d_out[i] * x * s;
  }
}

}  // namespace recua::kernels::scalar
