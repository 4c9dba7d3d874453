// Element by element; the last few go through the same instructions under a mask, so that what an
// element becomes does not depend on where the row ends.
#include "kernels/row_ops.h"

#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {
namespace {

RECUA_AVX2_INLINE __m256 silu_mul8(__m256 gate, __m256 up) {
  const __m256 e = exp_lanes(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0F)));
  const __m256 one = _mm256_set1_ps(1.0F);
  return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, e)), up);
}

}  // namespace

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out) {
  __m256d low = _mm256_setzero_pd();
  __m256d high = _mm256_setzero_pd();
  std::size_t i = 0;
  const auto add_squares = [&](__m256 v) __attribute__((always_inline)) {
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    low = _mm256_fmadd_pd(a, a, low);
    high = _mm256_fmadd_pd(b, b, high);
  };
  for (; i + 8 <= n; i += 8) add_squares(_mm256_loadu_ps(x + i));
  const __m256i mask = first_lanes(n - i);
  if (i < n) add_squares(_mm256_maskload_ps(x + i, mask));

  const __m256d four = _mm256_add_pd(low, high);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  const double sum = _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  const double mean = sum / static_cast<double>(n) + static_cast<double>(eps);
  const double root = _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(mean)));
  const __m256 scale = _mm256_set1_ps(static_cast<float>(1.0 / root));

  for (i = 0; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
  }
  if (i < n) {
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
    _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(v, _mm256_maskload_ps(weight + i, mask)));
  }
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, silu_mul8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
  }
  if (i < n) {
    const __m256i mask = first_lanes(n - i);
    _mm256_maskstore_ps(
        out + i, mask,
        silu_mul8(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask)));
  }
}

void add(const float* a, const float* b, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
  }
  for (; i < n; ++i) out[i] = a[i] + b[i];
}

void scale_add(float scale, const float* x, std::size_t n, float* out) {
  const __m256 factor = _mm256_set1_ps(scale);
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i,
                     _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(out + i)));
  }
  if (i < n) {
    const __m256i mask = first_lanes(n - i);
    _mm256_maskstore_ps(out + i, mask,
                        _mm256_fmadd_ps(factor, _mm256_maskload_ps(x + i, mask),
                                        _mm256_maskload_ps(out + i, mask)));
  }
}

void rope_interleaved(float* x, const float* table, std::size_t n_rot) {
  std::size_t j = 0;
  for (; j + 8 <= n_rot; j += 8) {
    const __m256 pairs = _mm256_loadu_ps(x + j);
    const __m256 angles = _mm256_loadu_ps(table + j);
    const __m256 with_cos = _mm256_mul_ps(pairs, _mm256_moveldup_ps(angles));
    const __m256 with_sin =
        _mm256_mul_ps(_mm256_permute_ps(pairs, 0xb1), _mm256_movehdup_ps(angles));
    _mm256_storeu_ps(x + j, _mm256_addsub_ps(with_cos, with_sin));
  }
  for (; j < n_rot; j += 2) {
    const float a = x[j];
    const float b = x[j + 1];
    x[j] = a * table[j] - b * table[j + 1];
    x[j + 1] = b * table[j] + a * table[j + 1];
  }
}

void rope_split_half(float* x, const float* table, std::size_t n_rot) {
  const std::size_t half = n_rot / 2;
  std::size_t j = 0;
  for (; j + 8 <= half; j += 8) {
    const __m256 t0 = _mm256_loadu_ps(table + 2 * j);
    const __m256 t1 = _mm256_loadu_ps(table + 2 * j + 8);
    // Shuffles work within halves and leave the pairs of lanes as 0 2 1 3.
    const auto in_order = [](__m256 v) __attribute__((always_inline)) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
    };
    const __m256 cos = in_order(_mm256_shuffle_ps(t0, t1, 0x88));
    const __m256 sin = in_order(_mm256_shuffle_ps(t0, t1, 0xdd));
    const __m256 a = _mm256_loadu_ps(x + j);
    const __m256 b = _mm256_loadu_ps(x + half + j);
    _mm256_storeu_ps(x + j, _mm256_sub_ps(_mm256_mul_ps(a, cos), _mm256_mul_ps(b, sin)));
    _mm256_storeu_ps(x + half + j, _mm256_add_ps(_mm256_mul_ps(b, cos), _mm256_mul_ps(a, sin)));
  }
  for (; j < half; ++j) {
    const float a = x[j];
    const float b = x[half + j];
    x[j] = a * table[2 * j] - b * table[2 * j + 1];
    x[half + j] = b * table[2 * j] + a * table[2 * j + 1];
  }
}

void f32_to_f16(const float* x, std::size_t n, std::uint16_t* out) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) {
    const __m128i half = _mm_cvtps_ph(_mm_set_ss(x[i]), _MM_FROUND_TO_NEAREST_INT);
    out[i] = static_cast<std::uint16_t>(_mm_extract_epi16(half, 0));
  }
}

}  // namespace recua::kernels::avx2
