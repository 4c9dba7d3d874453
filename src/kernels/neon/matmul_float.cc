// Tiles of 4 weight rows by up to 4 tokens: 16 sums, 4 vectors of weights and one of activations
// leave room among 32 registers. Every output has one vector sum over k in order, so the shape of
// the tile does not show in it.
#include "kernels/matmul.h"
#include "kernels/neon/load_weights.h"

namespace recua::kernels::neon {
namespace {

using quant::DataType;

// Elements [i, i + n) of a row and zeros, n < 4.
template <DataType kType>
RECUA_NEON_INLINE float32x4_t load_tail(const std::byte* row, std::size_t i, std::size_t n) {
  std::byte copy[16] = {};
  __builtin_memcpy(copy, row + i * kElementBytes<kType>, n * kElementBytes<kType>);
  return load_weights<kType>(copy);
}

template <DataType kType, std::size_t kRows, std::size_t kTokens>
void tile(const MatmulArgs& args, std::size_t r, std::size_t t) {
  const std::byte* w[kRows];
  const float* x[kTokens];
  float32x4_t sum[kRows][kTokens];
  RECUA_UNROLL
  for (std::size_t i = 0; i < kRows; ++i) {
    w[i] = args.w + (r + i) * args.w_stride;
    RECUA_UNROLL
    for (std::size_t j = 0; j < kTokens; ++j) sum[i][j] = vdupq_n_f32(0.0F);
  }
  RECUA_UNROLL
  for (std::size_t j = 0; j < kTokens; ++j) x[j] = reinterpret_cast<const float*>(args.x[t + j]);

  const auto step = [&](const float32x4_t(&weight)[kRows], const float32x4_t(&value)[kTokens])
                        __attribute__((always_inline)) {
                          RECUA_UNROLL
                          for (std::size_t i = 0; i < kRows; ++i) {
                            RECUA_UNROLL
                            for (std::size_t j = 0; j < kTokens; ++j) {
                              sum[i][j] = vfmaq_f32(sum[i][j], weight[i], value[j]);
                            }
                          }
                        };
  float32x4_t weight[kRows];
  float32x4_t value[kTokens];
  std::size_t k = 0;
  for (; k + 4 <= args.n_in; k += 4) {
    RECUA_UNROLL
    for (std::size_t i = 0; i < kRows; ++i) {
      weight[i] = load_weights<kType>(w[i] + k * kElementBytes<kType>);
    }
    RECUA_UNROLL
    for (std::size_t j = 0; j < kTokens; ++j) value[j] = vld1q_f32(x[j] + k);
    step(weight, value);
  }
  if (k < args.n_in) {
    const std::size_t n = args.n_in - k;
    RECUA_UNROLL
    for (std::size_t i = 0; i < kRows; ++i) weight[i] = load_tail<kType>(w[i], k, n);
    RECUA_UNROLL
    for (std::size_t j = 0; j < kTokens; ++j) value[j] = load_first(x[j] + k, n);
    step(weight, value);
  }
  RECUA_UNROLL
  for (std::size_t i = 0; i < kRows; ++i) {
    RECUA_UNROLL
    for (std::size_t j = 0; j < kTokens; ++j) {
      args.out[t + j][args.out_offset + r + i] = sum_lanes(sum[i][j]);
    }
  }
}

template <DataType kType, std::size_t kTokens>
void all_rows(const MatmulArgs& args, std::size_t t) {
  std::size_t r = 0;
  for (; r + 4 <= args.n_rows; r += 4) tile<kType, 4, kTokens>(args, r, t);
  for (; r < args.n_rows; ++r) tile<kType, 1, kTokens>(args, r, t);
}

template <DataType kType>
void all_tokens(const MatmulArgs& args) {
  std::size_t t = 0;
  for (; t + 4 <= args.n_tokens; t += 4) all_rows<kType, 4>(args, t);
  if (args.n_tokens - t == 3) all_rows<kType, 3>(args, t);
  if (args.n_tokens - t == 2) all_rows<kType, 2>(args, t);
  if (args.n_tokens - t == 1) all_rows<kType, 1>(args, t);
}

}  // namespace

template <DataType kType>
void matmul_float(const MatmulArgs& args) {
  all_tokens<kType>(args);
}

template void matmul_float<DataType::kF32>(const MatmulArgs&);
template void matmul_float<DataType::kF16>(const MatmulArgs&);
template void matmul_float<DataType::kBF16>(const MatmulArgs&);

}  // namespace recua::kernels::neon
