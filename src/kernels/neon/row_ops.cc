// Element by element; the last few go through the same instructions in a copy, so that what an
// element becomes does not depend on where the row ends.
#include "kernels/row_ops.h"

#include "kernels/neon/common.h"

namespace recua::kernels::neon {
namespace {

RECUA_NEON_INLINE float32x4_t silu_mul4(float32x4_t gate, float32x4_t up) {
  const float32x4_t e = exp_lanes(vnegq_f32(gate));
  return vmulq_f32(vdivq_f32(gate, vaddq_f32(vdupq_n_f32(1.0F), e)), up);
}

}  // namespace

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out) {
  float64x2_t low = vdupq_n_f64(0.0);
  float64x2_t high = vdupq_n_f64(0.0);
  const auto add_squares = [&](float32x4_t v) __attribute__((always_inline)) {
    const float64x2_t a = vcvt_f64_f32(vget_low_f32(v));
    const float64x2_t b = vcvt_high_f64_f32(v);
    low = vfmaq_f64(low, a, a);
    high = vfmaq_f64(high, b, b);
  };
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) add_squares(vld1q_f32(x + i));
  if (i < n) add_squares(load_first(x + i, n - i));
  const double sum = vaddvq_f64(vaddq_f64(low, high));
  const double mean = sum / static_cast<double>(n) + static_cast<double>(eps);
  const auto scale = static_cast<float>(1.0 / __builtin_sqrt(mean));
  for (i = 0; i + 4 <= n; i += 4) {
    vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    vst1q_f32(out + i, silu_mul4(vld1q_f32(gate + i), vld1q_f32(up + i)));
  }
  if (i < n) {
    const float32x4_t last = silu_mul4(load_first(gate + i, n - i), load_first(up + i, n - i));
    store_first(out + i, n - i, last);
  }
}

void add(const float* a, const float* b, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vaddq_f32(vld1q_f32(a + i), vld1q_f32(b + i)));
  for (; i < n; ++i) out[i] = a[i] + b[i];
}

void scale_add(float scale, const float* x, std::size_t n, float* out) {
  const float32x4_t factor = vdupq_n_f32(scale);
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    vst1q_f32(out + i, vfmaq_f32(vld1q_f32(out + i), factor, vld1q_f32(x + i)));
  }
  if (i < n) {
    const float32x4_t last =
        vfmaq_f32(load_first(out + i, n - i), factor, load_first(x + i, n - i));
    store_first(out + i, n - i, last);
  }
}

void rope_interleaved(float* x, const float* table, std::size_t n_rot) {
  std::size_t j = 0;
  for (; j + 8 <= n_rot; j += 8) {
    const float32x4x2_t pairs = vld2q_f32(x + j);
    const float32x4x2_t angles = vld2q_f32(table + j);  // Cosines, then sines.
    float32x4x2_t out;
    out.val[0] =
        vsubq_f32(vmulq_f32(pairs.val[0], angles.val[0]), vmulq_f32(pairs.val[1], angles.val[1]));
    out.val[1] =
        vaddq_f32(vmulq_f32(pairs.val[1], angles.val[0]), vmulq_f32(pairs.val[0], angles.val[1]));
    vst2q_f32(x + j, out);
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
  for (; j + 4 <= half; j += 4) {
    const float32x4x2_t angles = vld2q_f32(table + 2 * j);
    const float32x4_t a = vld1q_f32(x + j);
    const float32x4_t b = vld1q_f32(x + half + j);
    vst1q_f32(x + j, vsubq_f32(vmulq_f32(a, angles.val[0]), vmulq_f32(b, angles.val[1])));
    vst1q_f32(x + half + j, vaddq_f32(vmulq_f32(b, angles.val[0]), vmulq_f32(a, angles.val[1])));
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
  for (; i + 4 <= n; i += 4) {
    vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  }
  if (i < n) {
    std::uint16_t last[4];
    vst1_u16(last, vreinterpret_u16_f16(vcvt_f16_f32(load_first(x + i, n - i))));
    __builtin_memcpy(out + i, last, (n - i) * sizeof(last[0]));
  }
}

}  // namespace recua::kernels::neon
