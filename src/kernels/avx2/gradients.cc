#include "kernels/gradients.h"

#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

struct Pair {
  __m256 d_gate;
  __m256 d_up;
};

RECUA_AVX2_INLINE Pair backward8(__m256 x, __m256 y, __m256 d_out) {
  const __m256 one = _mm256_set1_ps(1.0F);
  const __m256 e = exp_lanes(_mm256_xor_ps(x, _mm256_set1_ps(-0.0F)));
  const __m256 s = _mm256_div_ps(one, _mm256_add_ps(one, e));
  const __m256 slope = _mm256_fmadd_ps(x, _mm256_sub_ps(one, s), one);
  const __m256 scaled = _mm256_mul_ps(d_out, s);
  return {_mm256_mul_ps(_mm256_mul_ps(scaled, y), slope), _mm256_mul_ps(scaled, x)};
}

struct Moments {
  __m256 p;
  __m256 m;
  __m256 v;
};

RECUA_AVX2_INLINE Moments adam8(const AdamArgs& args, __m256 gradient, const Moments& old) {
  const __m256 g = _mm256_mul_ps(gradient, _mm256_set1_ps(args.factor));
  const auto blend = [](float b, __m256 before, __m256 now) __attribute__((always_inline)) {
    return _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(b), before),
                         _mm256_mul_ps(_mm256_set1_ps(1.0F - b), now));
  };
  const __m256 m = blend(args.b1, old.m, g);
  const __m256 v = blend(args.b2, old.v, _mm256_mul_ps(g, g));
  const __m256 root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v, _mm256_set1_ps(args.v_scale))),
                                    _mm256_set1_ps(args.eps));
  const __m256 move = _mm256_div_ps(_mm256_mul_ps(_mm256_set1_ps(args.rate), m), root);
  return {_mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(args.keep), old.p), move), m, v};
}

}  // namespace

void silu_mul_backward(const float* gate, const float* up, const float* d_out, std::size_t n,
                       float* d_gate, float* d_up) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Pair d =
        backward8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i), _mm256_loadu_ps(d_out + i));
    _mm256_storeu_ps(d_gate + i, d.d_gate);
    _mm256_storeu_ps(d_up + i, d.d_up);
  }
  if (i < n) {
    const __m256i mask = first_lanes(n - i);
    const Pair d = backward8(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask),
                             _mm256_maskload_ps(d_out + i, mask));
    _mm256_maskstore_ps(d_gate + i, mask, d.d_gate);
    _mm256_maskstore_ps(d_up + i, mask, d.d_up);
  }
}

void adam(const AdamArgs& args) {
  std::size_t i = 0;
  for (; i + 8 <= args.n; i += 8) {
    const Moments next = adam8(
        args, _mm256_loadu_ps(args.gradient + i),
        {_mm256_loadu_ps(args.p + i), _mm256_loadu_ps(args.m + i), _mm256_loadu_ps(args.v + i)});
    _mm256_storeu_ps(args.p + i, next.p);
    _mm256_storeu_ps(args.m + i, next.m);
    _mm256_storeu_ps(args.v + i, next.v);
  }
  if (i < args.n) {
    const __m256i mask = first_lanes(args.n - i);
    const Moments next =
        adam8(args, _mm256_maskload_ps(args.gradient + i, mask),
              {_mm256_maskload_ps(args.p + i, mask), _mm256_maskload_ps(args.m + i, mask),
               _mm256_maskload_ps(args.v + i, mask)});
    _mm256_maskstore_ps(args.p + i, mask, next.p);
    _mm256_maskstore_ps(args.m + i, mask, next.m);
    _mm256_maskstore_ps(args.v + i, mask, next.v);
  }
}

}  // namespace recua::kernels::avx2
