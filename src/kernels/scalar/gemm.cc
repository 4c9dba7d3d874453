#include "kernels/gemm.h"

namespace recua::kernels::scalar {
namespace {

double element(const GemmMatrix& matrix, std::size_t row, std::size_t column) {
  return static_cast<double>(matrix.transposed ? matrix.data[column * matrix.stride + row]
                                               : matrix.data[row * matrix.stride + column]);
}

}  // namespace

void gemm(const GemmArgs& args) {
  for (std::size_t i = 0; i < args.m; ++i) {
    for (std::size_t j = 0; j < args.n; ++j) {
      double sum = 0.0;
      for (std::size_t p = 0; p < args.k; ++p) sum += element(args.a, i, p) * element(args.b, p, j);
      float& out = args.c[i * args.c_stride + j];
      out = static_cast<float>(args.accumulate ? static_cast<double>(out) + sum : sum);
    }
  }
}

}  // namespace recua::kernels::scalar
