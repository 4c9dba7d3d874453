// Compiled for CPUs with SDOT and SMMLA.
#include "kernels/neon/quantized.h"

namespace recua::kernels::neon {

RECUA_NEON_TYPES(Products::kMatrix);

}  // namespace recua::kernels::neon
