// Packed F32, F16 and BF16: two vectors are one element of eight rows, its activation is broadcast,
// and every output is one chain of FMAs over k in order, whatever the tile. Tiles are of 16 rows by
// up to 4 tokens (16 sums); one token alone takes 32 rows, for four streams of memory.
#include "kernels/matmul.h"
#include "kernels/neon/load_weights.h"
#include "kernels/packed.h"

namespace recua::kernels::neon {
namespace {

using quant::DataType;

RECUA_NEON_INLINE void store_rows(float* out, float32x4_t low, float32x4_t high, std::size_t n) {
  if (n >= kPackedRows) {
    vst1q_f32(out, low);
    vst1q_f32(out + 4, high);
  } else {
    store_first(out, smaller(n, 4), low);
    if (n > 4) store_first(out + 4, n - 4, high);
  }
}

// The rows [r, r + 8 * kGroups) by the tokens [first, first + kTokens).
template <DataType kType, std::size_t kGroups, std::size_t kTokens>
void tile(const MatmulArgs& args, std::size_t r, std::size_t first) {
  constexpr std::size_t kVectorBytes = 4 * kElementBytes<kType>;
  const std::byte* const w = args.w + r / kPackedRows * args.w_stride;
  const float* x[kTokens];
  float32x4_t sum[kGroups][kTokens][2];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[first + t]);
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) sum[g][t][0] = sum[g][t][1] = vdupq_n_f32(0.0F);
  }
  for (std::size_t k = 0; k < args.n_in; ++k) {
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::byte* const at = w + g * args.w_stride + k * 2 * kVectorBytes;
      const float32x4_t low = load_weights<kType>(at);
      const float32x4_t high = load_weights<kType>(at + kVectorBytes);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const float32x4_t value = vdupq_n_f32(x[t][k]);
        sum[g][t][0] = vfmaq_f32(sum[g][t][0], low, value);
        sum[g][t][1] = vfmaq_f32(sum[g][t][1], high, value);
      }
    }
  }
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::size_t row = r + g * kPackedRows;
      store_rows(args.out[first + t] + args.out_offset + row, sum[g][t][0], sum[g][t][1],
                 args.n_rows - row);
    }
  }
}

template <DataType kType, std::size_t kGroups>
void some_rows(const MatmulArgs& args, std::size_t r) {
  std::size_t t = 0;
  if constexpr (kGroups <= 2) {
    for (; t + 4 <= args.n_tokens; t += 4) tile<kType, kGroups, 4>(args, r, t);
    if (args.n_tokens - t >= 2) {
      tile<kType, kGroups, 2>(args, r, t);
      t += 2;
    }
  }
  for (; t < args.n_tokens; ++t) tile<kType, kGroups, 1>(args, r, t);
}

template <DataType kType>
void all_rows(const MatmulArgs& args) {
  std::size_t r = 0;
  if (args.n_tokens == 1) {
    for (; r + 3 * kPackedRows < args.n_rows; r += 4 * kPackedRows) some_rows<kType, 4>(args, r);
  }
  for (; r + kPackedRows < args.n_rows; r += 2 * kPackedRows) some_rows<kType, 2>(args, r);
  if (r < args.n_rows) some_rows<kType, 1>(args, r);
}

}  // namespace

template <DataType kType>
void packed_matmul_float(const MatmulArgs& args) {
  all_rows<kType>(args);
}

template void packed_matmul_float<DataType::kF32>(const MatmulArgs&);
template void packed_matmul_float<DataType::kF16>(const MatmulArgs&);
template void packed_matmul_float<DataType::kBF16>(const MatmulArgs&);

}  // namespace recua::kernels::neon
