#include "compute/device.h"

namespace recua::compute {

void Device::moe_feed_forward(const ExpertFeedForward& ff, Rows x, const Route& route, Rows out) {
  moe_matmul(*ff.gate, x, route, ff.gate_out);
  moe_matmul(*ff.up, x, route, ff.up_out);
  silu_mul(ff.gate_out, ff.up_out, ff.gate_out);
  moe_matmul(*ff.down, ff.down_in, route, ff.down_out);
  moe_combine(ff.down_out, route, out);
}

}  // namespace recua::compute
