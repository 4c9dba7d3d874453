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

}  // namespace recua::kernels::avx2
