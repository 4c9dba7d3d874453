#pragma once
/// Products of F32 matrices, as training needs them: with either matrix read transposed, and added
/// to what is there.
///
///   c[i, j] = sum over p of a[i, p] * b[p, j]   (+ c[i, j] when accumulate)
///
/// Y = X W^T is {a: X, b: W transposed}; dX = dY W is {dY, W}; dW += dY^T X is {dY transposed, X}.
///
/// Sums: p ascending, in blocks of kGemmBlockK; a block is summed from zero with FMA and then added
/// to c. So a result does not depend on which part of c a call covers, and a caller may cut c among
/// threads as it likes: each cuts its own rows or columns and has its own scratch.
/// Variants agree with the scalar reference (sums in f64) within (k + 2) * 2^-23 of the sum of
/// absolute products.

#include <cstddef>

namespace recua::kernels {

/// A matrix in memory, row-major: rows are stride elements apart, stride >= what a row has.
struct GemmMatrix {
  const float* data = nullptr;
  std::size_t stride = 0;
  bool transposed = false;  // Element (i, j) is data[j * stride + i] instead of [i * stride + j].
};

struct GemmArgs {
  GemmMatrix a = {};  // [m, k]
  GemmMatrix b = {};  // [k, n]
  float* c = nullptr;
  std::size_t c_stride = 0;
  std::size_t m = 0;
  std::size_t n = 0;
  std::size_t k = 0;  // 0: c is left, or cleared without accumulate.
  bool accumulate = false;
  float* scratch = nullptr;  // kGemmScratchFloats of the calling thread, 64-byte aligned.
};

/// 144 rows of a (147 KB) and 512 columns of b (524 KB) of a block lie in a 1 MB second-level
/// cache; the 16 columns that a tile works on (16 KB; AVX-512: 32) in the first.
inline constexpr std::size_t kGemmBlockM = 144;
inline constexpr std::size_t kGemmBlockN = 512;
inline constexpr std::size_t kGemmBlockK = 256;
/// A caller that cuts c at multiples of these has no partial tiles inside, whatever the set's tile.
inline constexpr std::size_t kGemmCutM = 12;
inline constexpr std::size_t kGemmCutN = 32;
inline constexpr std::size_t kGemmScratchFloats = kGemmBlockK * (kGemmBlockM + kGemmBlockN);

namespace scalar {
void gemm(const GemmArgs& args);
}
namespace avx2 {
void gemm(const GemmArgs& args);
}
namespace avx512 {
void gemm(const GemmArgs& args);
}
namespace neon {
void gemm(const GemmArgs& args);
}

}  // namespace recua::kernels
