// Packed F32, F16 and BF16 for few tokens: a vector is one element of sixteen rows (two groups),
// its activation is broadcast, and every output is one chain of FMAs over k in order, whatever the
// tile: the same bits as AVX2's.
//
// One to three tokens take two vectors of rows side by side: the chains of one do not keep up with
// memory (27 GB/s at 3.4 GHz), more vectors are more streams of it than its prefetcher follows.
// What comes next is asked for 2 KiB ahead, the next rows' beginnings too. One thread alone then
// reads F16 at 87 % of what it could (1 KiB ahead 72, 3 KiB 82; four vectors 75; nothing asked for
// 69). Rows of up to 768 values in F16 are asked for as they lie in memory, all of the next groups
// while these are read, if the thread has such: 1.09 times as fast for two threads on one core,
// equal for two on two; longer ones would come too early (0.91 to 0.96 with rows of 2048).
//
// More take tiles of 16 rows by up to 16 tokens: as many sums, one vector of weights, and
// activations that FMAs broadcast themselves, so that a weight is converted once for all of them
// where AVX2's 16 registers need three turns. Above kDirectTokens AVX2's copy in f32 in the
// first-level cache is as good.
#include "kernels/avx512/packed_driver.h"

namespace recua::kernels::avx512 {
namespace {

using quant::DataType;

constexpr std::size_t kTokensMax = 16;  // Of a tile.
constexpr std::size_t kDirectTokens = 32;
constexpr std::size_t kFewTokens = 3;
constexpr std::size_t kFewVectors = 2;
constexpr std::size_t kFewAhead = 2048;
constexpr std::size_t kShortBytes = std::size_t{48} << 10U;  // Of the groups read side by side.

/// Bytes of one element of a group.
template <DataType kType>
constexpr std::size_t kElementBytes = kPackedRows * (kType == DataType::kF32 ? 4 : 2);
template <DataType kType>
constexpr std::size_t kPerLine = 64 / kElementBytes<kType>;

template <DataType kType>
RECUA_AVX512_INLINE __m512 load16(TwoGroups w, std::size_t at) {
  if constexpr (kType == DataType::kF32) {
    return _mm512_castsi512_ps(w.dwords(at));
  } else if constexpr (kType == DataType::kF16) {
    return w.halves(at);
  } else {
    const __m256i both = _mm256_set_m128i(load128(w.b + at), load128(w.a + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(both), 16));
  }
}

// At byte `at` of each of the groups read side by side: as many lines as are read now. in_order:
// of the groups behind them, as they lie in memory.
template <std::size_t kGroups>
RECUA_AVX512_INLINE void ask_ahead(const std::uint8_t* w, std::size_t at, std::size_t w_stride,
                                   bool in_order) {
  const std::size_t next = in_order ? kGroups * (w_stride + at)
                                    : avx2::prefetch_offset(at, w_stride, kGroups, kFewAhead);
  const std::size_t distance = in_order ? 64 : w_stride;
  RECUA_UNROLL
  for (std::size_t i = 0; i < kGroups; ++i) avx2::prefetch<64>(w + next + i * distance);
}

// The rows [r, r + 16 * kVectors) by the tokens [first, first + kTokens).
template <DataType kType, std::size_t kVectors, std::size_t kTokens>
[[gnu::noinline]] void some_vectors(const MatmulArgs& args, std::size_t r, std::size_t first) {
  const float* x[kTokens];
  __m512 sum[kVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[first + t]);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sum[v][t] = _mm512_setzero_ps();
  }
  const TwoGroups w = two_groups(args, r);
  const auto step = [&](std::size_t k) __attribute__((always_inline)) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t at = 2 * v * args.w_stride + k * kElementBytes<kType>;
      const __m512 weight = load16<kType>(w, at);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[v][t] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[t][k]), sum[v][t]);
      }
    }
  };
  constexpr std::size_t kGroups = 2 * kVectors;
  const bool in_order = kVectors == kFewVectors && kGroups * args.w_stride <= kShortBytes &&
                        r + 2 * kGroups * kPackedRows <= args.n_rows;
  std::size_t k = 0;
  for (; k + kPerLine<kType> <= args.n_in; k += kPerLine<kType>) {
    const std::size_t at = k * kElementBytes<kType>;
    if constexpr (kTokens > kFewTokens) {
      w.prefetch<64>(at + avx2::kPrefetchBytes);
    } else {
      ask_ahead<kGroups>(w.a, at, args.w_stride, in_order);
    }
    RECUA_UNROLL
    for (std::size_t i = 0; i < kPerLine<kType>; ++i) step(k + i);
  }
  for (; k < args.n_in; ++k) step(k);
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t row = r + v * kVectorRows;
      store_rows(args.out[first + t] + args.out_offset + row, sum[v][t], args.n_rows - row);
    }
  }
}

template <DataType kType, std::size_t kTokens>
void few_float_tokens(const MatmulArgs& args) {
  std::size_t r = 0;
  for (; r + (2 * kFewVectors - 1) * kPackedRows < args.n_rows; r += kFewVectors * kVectorRows) {
    some_vectors<kType, kFewVectors, kTokens>(args, r, 0);
  }
  for (; r < args.n_rows; r += kVectorRows) some_vectors<kType, 1, kTokens>(args, r, 0);
}

// fn.operator()<kTokens>() for a number of tokens up to kTokensMax.
template <std::size_t kTokens, class Fn>
RECUA_AVX512_INLINE void with_tokens(std::size_t n, Fn&& fn) {
  if constexpr (kTokens <= kTokensMax) {
    if (n == kTokens) return fn.template operator()<kTokens>();
    with_tokens<kTokens + 1>(n, fn);
  }
}

template <DataType kType>
RECUA_AVX512_INLINE void multiply_float(const MatmulArgs& args) {
  if (args.n_tokens > kDirectTokens) return avx2::packed_matmul<kType>(args);
  if (args.n_tokens == 1) return few_float_tokens<kType, 1>(args);
  if (args.n_tokens == 2) return few_float_tokens<kType, 2>(args);
  if (args.n_tokens == 3) return few_float_tokens<kType, 3>(args);
  for (std::size_t r = 0; r < args.n_rows; r += kVectorRows) {
    for (std::size_t t = 0; t < args.n_tokens;) {
      const std::size_t rest = args.n_tokens - t;
      const std::size_t n = rest > kTokensMax ? (rest + 1) / 2 : rest;
      with_tokens<4>(n, [&]<std::size_t kTokens>() __attribute__((always_inline)) {
        some_vectors<kType, 1, kTokens>(args, r, t);
      });
      t += n;
    }
  }
}

}  // namespace

template <>
void packed_matmul<DataType::kF32>(const MatmulArgs& args) {
  multiply_float<DataType::kF32>(args);
}
template <>
void packed_matmul<DataType::kF16>(const MatmulArgs& args) {
  multiply_float<DataType::kF16>(args);
}
template <>
void packed_matmul<DataType::kBF16>(const MatmulArgs& args) {
  multiply_float<DataType::kBF16>(args);
}

}  // namespace recua::kernels::avx512
