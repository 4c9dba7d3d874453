// Packed F32, F16 and BF16: a vector is one element of four rows, its activation is broadcast, and
// every output is one chain of FMAs over k in order, whatever the tile. Tiles are of 16 rows (half
// a group) by up to 4 tokens (16 sums); one token alone takes a group as it lies in memory.
#include "kernels/matmul.h"
#include "kernels/neon/load_weights.h"
#include "kernels/packed.h"

namespace recua::kernels::neon {
namespace {

using quant::DataType;

constexpr std::size_t kLanes = 4;

// Of the group that begins with row r the rows [r + row, r + row + 4 * kVectors) by the tokens
// [first, first + kTokens).
template <DataType kType, std::size_t kVectors, std::size_t kTokens>
void tile(const MatmulArgs& args, std::size_t r, std::size_t row, std::size_t first) {
  constexpr std::size_t kVectorBytes = kLanes * kElementBytes<kType>;
  constexpr std::size_t kGroupBytes = kPackedFloatRows * kElementBytes<kType>;
  const std::byte* const w =
      args.w + r / kPackedFloatRows * args.w_stride + row * kElementBytes<kType>;
  const float* x[kTokens];
  float32x4_t sum[kVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[first + t]);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sum[v][t] = vdupq_n_f32(0.0F);
  }
  for (std::size_t k = 0; k < args.n_in; ++k) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const float32x4_t weight = load_weights<kType>(w + k * kGroupBytes + v * kVectorBytes);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[v][t] = vfmaq_f32(sum[v][t], weight, vdupq_n_f32(x[t][k]));
      }
    }
  }
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t at = r + row + v * kLanes;
      if (at >= args.n_rows) break;
      store_first(args.out[first + t] + args.out_offset + at, smaller(kLanes, args.n_rows - at),
                  sum[v][t]);
    }
  }
}

// Half the group that begins with row r by all tokens.
template <DataType kType>
void half_group(const MatmulArgs& args, std::size_t r, std::size_t row) {
  std::size_t t = 0;
  for (; t + 4 <= args.n_tokens; t += 4) tile<kType, 4, 4>(args, r, row, t);
  if (args.n_tokens - t >= 2) {
    tile<kType, 4, 2>(args, r, row, t);
    t += 2;
  }
  if (t < args.n_tokens) tile<kType, 4, 1>(args, r, row, t);
}

template <DataType kType>
void all_rows(const MatmulArgs& args) {
  for (std::size_t r = 0; r < args.n_rows; r += kPackedFloatRows) {
    if (args.n_tokens == 1) {
      tile<kType, kPackedFloatRows / kLanes, 1>(args, r, 0, 0);
      continue;
    }
    constexpr std::size_t kHalf = kPackedFloatRows / 2;
    half_group<kType>(args, r, 0);
    if (args.n_rows - r > kHalf) half_group<kType>(args, r, kHalf);
  }
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
