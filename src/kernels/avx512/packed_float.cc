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
// More take tiles of 64 rows by up to 6 tokens, over 32 KiB of weights at a time, which stay in the
// first caches for all tokens: 24 sums, four vectors of weights and an activation are 29 of 32
// registers, six pointers to activations fit the others, and a step loads and converts 10 times for
// 24 FMAs. (Tiles of one vector by 16 tokens loaded as often as they multiplied, and pointers
// besides.) Weights are converted anew for each tile, in the shadow of its FMAs.
#include "kernels/avx512/packed_driver.h"

namespace recua::kernels::avx512 {
namespace {

using quant::DataType;

constexpr std::size_t kFewTokens = 3;
constexpr std::size_t kFewVectors = 2;
constexpr std::size_t kFewAhead = 2048;
constexpr std::size_t kManyVectors = 4;
constexpr std::size_t kShortBytes = std::size_t{48} << 10U;  // Of the groups read side by side.

/// Bytes of one element of a group.
template <DataType kType>
constexpr std::size_t kElementBytes = kPackedRows * (kType == DataType::kF32 ? 4 : 2);
template <DataType kType>
constexpr std::size_t kPerLine = 64 / kElementBytes<kType>;
/// Elements that go through all tokens together.
template <DataType kType>
constexpr std::size_t kChunk = 4096 / kElementBytes<kType>;

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

// The rows [r, r + 16 * kVectors) by all of kTokens tokens.
template <DataType kType, std::size_t kVectors, std::size_t kTokens>
[[gnu::noinline]] void some_vectors(const MatmulArgs& args, std::size_t r) {
  const float* x[kTokens];
  __m512 sum[kVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[t]);
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
    ask_ahead<kGroups>(w.a, at, args.w_stride, in_order);
    RECUA_UNROLL
    for (std::size_t i = 0; i < kPerLine<kType>; ++i) step(k + i);
  }
  for (; k < args.n_in; ++k) step(k);
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t row = r + v * kVectorRows;
      store_rows(args.out[t] + args.out_offset + row, sum[v][t], args.n_rows - row);
    }
  }
}

template <DataType kType, std::size_t kTokens>
void few_float_tokens(const MatmulArgs& args) {
  std::size_t r = 0;
  for (; r + (2 * kFewVectors - 1) * kPackedRows < args.n_rows; r += kFewVectors * kVectorRows) {
    some_vectors<kType, kFewVectors, kTokens>(args, r);
  }
  for (; r < args.n_rows; r += kVectorRows) some_vectors<kType, 1, kTokens>(args, r);
}

/// Sums of rows on their way through memory, for each token.
using ManySums = float[kManyVectors * kVectorRows];

/// Elements of 16 * kVectors rows, and what to ask for meanwhile: `ahead` bytes behind each of
/// them.
template <std::size_t kVectors>
struct Weights {
  TwoGroups vectors[kVectors];
  std::size_t n;
  std::size_t ahead;
};

// Adds the products of some elements, for which x begins with element k, to sums[kTokens].
template <DataType kType, std::size_t kVectors, std::size_t kTokens>
[[gnu::noinline]] void tile(const Weights<kVectors>& w, const std::byte* const* x_rows,
                            std::size_t k, ManySums* sums) {
  const float* x[kTokens];
  __m512 sum[kVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(x_rows[t]) + k;
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      sum[v][t] = _mm512_load_ps(sums[t] + v * kVectorRows);
    }
  }
  const auto step = [&](std::size_t i) __attribute__((always_inline)) {
    __m512 weight[kVectors];
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      weight[v] = load16<kType>(w.vectors[v], i * kElementBytes<kType>);
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m512 value = _mm512_set1_ps(x[t][i]);
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[v][t] = _mm512_fmadd_ps(weight[v], value, sum[v][t]);
      }
    }
  };
  std::size_t i = 0;
  for (; i + kPerLine<kType> <= w.n; i += kPerLine<kType>) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      w.vectors[v].template prefetch<64>(i * kElementBytes<kType> + w.ahead);
    }
    RECUA_UNROLL
    for (std::size_t j = 0; j < kPerLine<kType>; ++j) step(i + j);
  }
  for (; i < w.n; ++i) step(i);
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(sums[t] + v * kVectorRows, sum[v][t]);
    }
  }
}

// tile() of n tokens, 1 to kTileTokens.
template <DataType kType, std::size_t kVectors, std::size_t kTokens = kTileTokens>
RECUA_AVX512_INLINE void tile_of(std::size_t n, const Weights<kVectors>& w,
                                 const std::byte* const* x, std::size_t k, ManySums* sums) {
  if (n == kTokens) {
    tile<kType, kVectors, kTokens>(w, x, k, sums);
  } else if constexpr (kTokens > 1) {
    tile_of<kType, kVectors, kTokens - 1>(n, w, x, k, sums);
  }
}

// All tokens in tiles as even as can be.
template <DataType kType, std::size_t kVectors>
void tiles(Weights<kVectors> w, const std::byte* const* x, std::size_t n_tokens, std::size_t k,
           ManySums* sums) {
  for (std::size_t t = 0; t < n_tokens;) {
    const std::size_t rest = n_tokens - t;
    const std::size_t n_tiles = (rest + kTileTokens - 1) / kTileTokens;
    const std::size_t n = (rest + n_tiles - 1) / n_tiles;
    tile_of<kType, kVectors>(n, w, x + t, k, sums + t);
    t += n;
    w.ahead = 0;  // Once is enough.
  }
}

// The rows [r, r + 16 * kVectors) by the tokens [t0, t0 + n_tokens).
template <DataType kType, std::size_t kVectors>
void many_rows(const MatmulArgs& args, std::size_t r, std::size_t t0, std::size_t n_tokens) {
  alignas(64) ManySums sums[kTokenBlock];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(sums[t] + v * kVectorRows, _mm512_setzero_ps());
    }
  }
  for (std::size_t k = 0; k < args.n_in; k += kChunk<kType>) {
    const std::size_t at = k * kElementBytes<kType>;
    const bool last = k + kChunk<kType> >= args.n_in;
    const std::size_t n = last ? args.n_in - k : kChunk<kType>;
    // The next elements, or those that the next rows begin with.
    const std::size_t ahead =
        last ? 2 * kVectors * args.w_stride - at : kChunk<kType> * kElementBytes<kType>;
    const auto vector = [&](std::size_t v) __attribute__((always_inline)) {
      return two_groups(args, r + v * kVectorRows).from(at);
    };
    if constexpr (kVectors == 4) {
      tiles<kType, 4>({{vector(0), vector(1), vector(2), vector(3)}, n, ahead}, args.x + t0,
                      n_tokens, k, sums);
    } else {
      static_assert(kVectors == 1);
      tiles<kType, 1>({{vector(0)}, n, ahead}, args.x + t0, n_tokens, k, sums);
    }
  }
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::size_t row = r + v * kVectorRows;
      store_rows(args.out[t0 + t] + args.out_offset + row,
                 _mm512_load_ps(sums[t] + v * kVectorRows), args.n_rows - row);
    }
  }
}

template <DataType kType>
RECUA_AVX512_INLINE void multiply_float(const MatmulArgs& args) {
  if (args.n_tokens == 1) return few_float_tokens<kType, 1>(args);
  if (args.n_tokens == 2) return few_float_tokens<kType, 2>(args);
  if (args.n_tokens == kFewTokens) return few_float_tokens<kType, kFewTokens>(args);
  for (std::size_t t = 0; t < args.n_tokens; t += kTokenBlock) {
    const std::size_t n = args.n_tokens - t < kTokenBlock ? args.n_tokens - t : kTokenBlock;
    std::size_t r = 0;
    for (; r + (kManyVectors - 1) * kVectorRows < args.n_rows; r += kManyVectors * kVectorRows) {
      many_rows<kType, kManyVectors>(args, r, t, n);
    }
    for (; r < args.n_rows; r += kVectorRows) many_rows<kType, 1>(args, r, t, n);
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
