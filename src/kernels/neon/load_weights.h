#pragma once
/// Four neighbouring weights of a float type as f32. Only files of neon/ include this.

#include "kernels/neon/common.h"
#include "quant/data_type.h"

namespace recua::kernels::neon {

template <quant::DataType kType>
constexpr std::size_t kElementBytes = kType == quant::DataType::kF32 ? 4 : 2;

template <quant::DataType kType>
RECUA_NEON_INLINE float32x4_t load_weights(const std::byte* p) {
  if constexpr (kType == quant::DataType::kF32) {
    return vreinterpretq_f32_u8(load16(p));
  } else if constexpr (kType == quant::DataType::kF16) {
    return load4_f16(p);
  } else {
    return load4_bf16(p);
  }
}

}  // namespace recua::kernels::neon
