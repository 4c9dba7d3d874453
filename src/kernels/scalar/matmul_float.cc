#include <cstring>

#include "kernels/matmul.h"
#include "quant/half.h"

namespace recua::kernels::scalar {
namespace {

template <quant::DataType kType>
float element(const std::byte* row, std::size_t i) {
  if constexpr (kType == quant::DataType::kF32) {
    float value = 0.0F;
    std::memcpy(&value, row + 4 * i, sizeof(value));
    return value;
  } else {
    std::uint16_t bits = 0;
    std::memcpy(&bits, row + 2 * i, sizeof(bits));
    return kType == quant::DataType::kF16 ? quant::f16_to_f32(bits) : quant::bf16_to_f32(bits);
  }
}

}  // namespace

template <quant::DataType kType>
void matmul(const MatmulArgs& args) {
  for (std::size_t r = 0; r < args.n_rows; ++r) {
    const std::byte* row = args.w + r * args.w_stride;
    for (std::size_t t = 0; t < args.n_tokens; ++t) {
      const auto* x = reinterpret_cast<const float*>(args.x[t]);
      double sum = 0.0;  // The yardstick for the others.
      for (std::size_t i = 0; i < args.n_in; ++i) {
        sum += static_cast<double>(element<kType>(row, i)) * x[i];
      }
      args.out[t][args.out_offset + r] = static_cast<float>(sum);
    }
  }
}

template void matmul<quant::DataType::kF32>(const MatmulArgs&);
template void matmul<quant::DataType::kF16>(const MatmulArgs&);
template void matmul<quant::DataType::kBF16>(const MatmulArgs&);

}  // namespace recua::kernels::scalar
