// Compiled for any 64-bit Arm.
#include "kernels/neon/quantized.h"

namespace recua::kernels::neon {

RECUA_NEON_TYPES(Products::kWiden);

}  // namespace recua::kernels::neon
