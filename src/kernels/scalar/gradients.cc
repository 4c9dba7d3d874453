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

void adam(const AdamArgs& args) {
  for (std::size_t i = 0; i < args.n; ++i) {
    const float g = args.gradient[i] * args.factor;
    args.m[i] = args.b1 * args.m[i] + (1.0F - args.b1) * g;
    args.v[i] = args.b2 * args.v[i] + (1.0F - args.b2) * (g * g);
    const float root = std::sqrt(args.v[i] * args.v_scale) + args.eps;
    args.p[i] = args.keep * args.p[i] - args.rate * args.m[i] / root;
  }
}

}  // namespace recua::kernels::scalar
