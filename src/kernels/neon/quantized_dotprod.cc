// Compiled for CPUs with SDOT.
#include "kernels/neon/quantized.h"

namespace recua::kernels::neon {

RECUA_NEON_TYPES(Products::kDot);

}  // namespace recua::kernels::neon
