#pragma once
/// Elements of the cache's types as f32, sixteen at a time. Only files of neon/ include this.

#include "kernels/neon/common.h"
#include "quant/data_type.h"

namespace recua::kernels::neon {

struct Sixteen {
  float32x4_t v[4];
};

constexpr bool is_float(quant::DataType type) {
  return type == quant::DataType::kF32 || type == quant::DataType::kF16;
}

RECUA_NEON_INLINE Sixteen same16(float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {{all, all, all, all}};
}
RECUA_NEON_INLINE Sixteen load16_f32(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
RECUA_NEON_INLINE void store16(float* p, const Sixteen& x) {
  RECUA_UNROLL
  for (std::size_t i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}

template <quant::DataType kType>
RECUA_NEON_INLINE Sixteen widen_floats(const std::byte* at) {
  if constexpr (kType == quant::DataType::kF32) {
    return load16_f32(reinterpret_cast<const float*>(at));
  } else {
    return {{load4_f16(at), load4_f16(at + 8), load4_f16(at + 16), load4_f16(at + 24)}};
  }
}

/// Sixteen quants of Q8_0, and those in the low and high nibbles of sixteen bytes of Q4_0.
RECUA_NEON_INLINE int8x16_t quants8(const std::byte* at) { return vreinterpretq_s8_u8(load16(at)); }
RECUA_NEON_INLINE int8x16_t low_quants4(const std::byte* at) {
  const uint8x16_t nibbles = vandq_u8(load16(at), vdupq_n_u8(15));
  return vsubq_s8(vreinterpretq_s8_u8(nibbles), vdupq_n_s8(8));
}
RECUA_NEON_INLINE int8x16_t high_quants4(const std::byte* at) {
  return vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(load16(at), 4)), vdupq_n_s8(8));
}

RECUA_NEON_INLINE Sixteen widen_quants(int8x16_t q, const Sixteen& scale) {
  const int16x8_t low = vmovl_s8(vget_low_s8(q));
  const int16x8_t high = vmovl_high_s8(q);
  return {{vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), scale.v[0]),
           vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(low)), scale.v[1]),
           vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), scale.v[2]),
           vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(high)), scale.v[3])}};
}

}  // namespace recua::kernels::neon
