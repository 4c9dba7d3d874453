#include "compute/device.h"

namespace recua::compute {

void Device::matmul_each(std::span<const Product> products, Rows x) {
  for (const Product& product : products) matmul(*product.w, x, product.out);
}

void Device::matmul_gated(const Product& gate, const Product& up, Rows x) {
  matmul(*gate.w, x, gate.out);
  matmul(*up.w, x, up.out);
  silu_mul(gate.out, up.out, gate.out);
}

void Device::moe_feed_forward(const ExpertFeedForward& ff, Rows x, const Route& route, Rows out) {
  moe_matmul(*ff.gate, x, route, ff.gate_out);
  moe_matmul(*ff.up, x, route, ff.up_out);
  silu_mul(ff.gate_out, ff.up_out, ff.gate_out);
  moe_matmul(*ff.down, ff.down_in, route, ff.down_out);
  moe_combine(ff.down_out, route, out);
}

}  // namespace recua::compute
