// Tiles of 4 weight rows by up to 3 tokens: 12 sums of 8 lanes and 4 vectors of weights fill the 16
// registers, and 12 FMAs hide their latency. One token takes 8 rows, and no prefetch: the streams
// of so many rows are found by the CPU itself (24 GB/s against 16 with 4 rows that asked 1 KiB
// ahead). Every output has one vector sum over k in order, so the shape of the tile does not show
// in it.
#include "kernels/avx2/common.h"
#include "kernels/matmul.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

template <DataType kType>
constexpr std::size_t kElementBytes = kType == DataType::kF32 ? 4 : 2;

RECUA_AVX2_INLINE __m256 widen_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Elements [i, i + 8) of a row.
template <DataType kType>
RECUA_AVX2_INLINE __m256 load8(const std::byte* row, std::size_t i) {
  if constexpr (kType == DataType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 4 * i));
  } else if constexpr (kType == DataType::kF16) {
    return _mm256_cvtph_ps(load128(row + 2 * i));
  } else {
    return widen_bf16(load128(row + 2 * i));
  }
}

// Elements [i, i + n) of a row and zeros, n < 8.
template <DataType kType>
RECUA_AVX2_INLINE __m256 load_tail(const std::byte* row, std::size_t i, std::size_t n) {
  alignas(32) std::byte copy[32] = {};
  __builtin_memcpy(copy, row + i * kElementBytes<kType>, n * kElementBytes<kType>);
  return load8<kType>(copy, 0);
}

template <DataType kType, std::size_t kRows, std::size_t kTokens>
RECUA_AVX2_INLINE void tile(const MatmulArgs& args, std::size_t r, std::size_t t) {
  constexpr std::size_t kBytes = kElementBytes<kType>;
  const std::byte* w[kRows];
  const float* x[kTokens];
  __m256 sum[kRows][kTokens];
  for (std::size_t i = 0; i < kRows; ++i) w[i] = args.w + (r + i) * args.w_stride;
  for (std::size_t j = 0; j < kTokens; ++j) x[j] = reinterpret_cast<const float*>(args.x[t + j]);
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kTokens; ++j) sum[i][j] = _mm256_setzero_ps();
  }

  const auto step = [&](std::size_t k) __attribute__((always_inline)) {
    __m256 weight[kRows];
    for (std::size_t i = 0; i < kRows; ++i) weight[i] = load8<kType>(w[i], k);
    for (std::size_t j = 0; j < kTokens; ++j) {
      const __m256 value = _mm256_loadu_ps(x[j] + k);
      for (std::size_t i = 0; i < kRows; ++i) {
        sum[i][j] = _mm256_fmadd_ps(weight[i], value, sum[i][j]);
      }
    }
  };
  constexpr std::size_t kPerLine = 64 / kBytes;
  std::size_t k = 0;
  for (; k + kPerLine <= args.n_in; k += kPerLine) {
    for (std::size_t i = 0; i < kPerLine; i += 8) step(k + i);
  }
  for (; k + 8 <= args.n_in; k += 8) step(k);
  if (k < args.n_in) {
    const std::size_t n = args.n_in - k;
    for (std::size_t j = 0; j < kTokens; ++j) {
      const __m256 value = _mm256_maskload_ps(x[j] + k, first_lanes(n));
      for (std::size_t i = 0; i < kRows; ++i) {
        sum[i][j] = _mm256_fmadd_ps(load_tail<kType>(w[i], k, n), value, sum[i][j]);
      }
    }
  }
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kTokens; ++j) {
      args.out[t + j][args.out_offset + r + i] = sum_lanes(sum[i][j]);
    }
  }
}

template <DataType kType, std::size_t kTokens>
void all_rows(const MatmulArgs& args, std::size_t t) {
  std::size_t r = 0;
  if constexpr (kTokens == 1) {
    for (; r + 8 <= args.n_rows; r += 8) tile<kType, 8, 1>(args, r, t);
  }
  for (; r + 4 <= args.n_rows; r += 4) tile<kType, 4, kTokens>(args, r, t);
  for (; r < args.n_rows; ++r) tile<kType, 1, kTokens>(args, r, t);
}

}  // namespace

template <DataType kType>
void matmul(const MatmulArgs& args) {
  std::size_t t = 0;
  for (; t + 3 <= args.n_tokens; t += 3) all_rows<kType, 3>(args, t);
  if (args.n_tokens - t == 2) all_rows<kType, 2>(args, t);
  if (args.n_tokens - t == 1) all_rows<kType, 1>(args, t);
}

template void matmul<DataType::kF32>(const MatmulArgs&);
template void matmul<DataType::kF16>(const MatmulArgs&);
template void matmul<DataType::kBF16>(const MatmulArgs&);

}  // namespace recua::kernels::avx2
