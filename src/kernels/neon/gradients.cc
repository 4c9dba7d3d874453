#include "kernels/gradients.h"

#include "kernels/neon/common.h"

namespace recua::kernels::neon {
namespace {

struct Pair {
  float32x4_t d_gate;
  float32x4_t d_up;
};

RECUA_NEON_INLINE Pair backward4(float32x4_t x, float32x4_t y, float32x4_t d_out) {
  const float32x4_t one = vdupq_n_f32(1.0F);
  const float32x4_t s = vdivq_f32(one, vaddq_f32(one, exp_lanes(vnegq_f32(x))));
  const float32x4_t slope = vfmaq_f32(one, x, vsubq_f32(one, s));
  const float32x4_t scaled = vmulq_f32(d_out, s);
  return {vmulq_f32(vmulq_f32(scaled, y), slope), vmulq_f32(scaled, x)};
}

struct Moments {
  float32x4_t p;
  float32x4_t m;
  float32x4_t v;
};

RECUA_NEON_INLINE Moments adam4(const AdamArgs& args, float32x4_t gradient, const Moments& old) {
  const float32x4_t g = vmulq_n_f32(gradient, args.factor);
  const auto blend = [](float b, float32x4_t before, float32x4_t now)
                         __attribute__((always_inline)) {
                           return vaddq_f32(vmulq_n_f32(before, b), vmulq_n_f32(now, 1.0F - b));
                         };
  const float32x4_t m = blend(args.b1, old.m, g);
  const float32x4_t v = blend(args.b2, old.v, vmulq_f32(g, g));
  const float32x4_t root =
      vaddq_f32(vsqrtq_f32(vmulq_n_f32(v, args.v_scale)), vdupq_n_f32(args.eps));
  const float32x4_t move = vdivq_f32(vmulq_n_f32(m, args.rate), root);
  return {vsubq_f32(vmulq_n_f32(old.p, args.keep), move), m, v};
}

}  // namespace

void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up) {
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const Pair d = backward4(vld1q_f32(gate + i), vld1q_f32(up + i), vld1q_f32(d_out + i));
    vst1q_f32(d_gate + i, d.d_gate);
    vst1q_f32(d_up + i, d.d_up);
  }
  if (i < n) {
    const std::size_t rest = n - i;
    const Pair d = backward4(load_first(gate + i, rest), load_first(up + i, rest),
                             load_first(d_out + i, rest));
    store_first(d_gate + i, rest, d.d_gate);
    store_first(d_up + i, rest, d.d_up);
  }
}

void adam(const AdamArgs& args) {
  std::size_t i = 0;
  for (; i + 4 <= args.n; i += 4) {
    const Moments next =
        adam4(args, vld1q_f32(args.gradient + i),
              {vld1q_f32(args.p + i), vld1q_f32(args.m + i), vld1q_f32(args.v + i)});
    vst1q_f32(args.p + i, next.p);
    vst1q_f32(args.m + i, next.m);
    vst1q_f32(args.v + i, next.v);
  }
  if (i < args.n) {
    const std::size_t rest = args.n - i;
    const Moments next = adam4(
        args, load_first(args.gradient + i, rest),
        {load_first(args.p + i, rest), load_first(args.m + i, rest), load_first(args.v + i, rest)});
    store_first(args.p + i, rest, next.p);
    store_first(args.m + i, rest, next.m);
    store_first(args.v + i, rest, next.v);
  }
}

}  // namespace recua::kernels::neon
