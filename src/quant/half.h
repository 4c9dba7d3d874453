#pragma once
/// base/half.h under the names that quantization knows it by.

#include "base/half.h"

namespace recua::quant {

using recua::bf16_to_f32;
using recua::f16_to_f32;
using recua::f32_to_bf16;
using recua::f32_to_f16;
using recua::kF16Max;

}  // namespace recua::quant
