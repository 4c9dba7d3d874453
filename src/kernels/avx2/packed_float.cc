// Packed F32, F16 and BF16: a vector is one element of eight rows, its activation is broadcast, and
// every output is one chain of FMAs over k in order, whatever the tile.
//
// Few tokens go straight over the packed bytes. One to three take four groups side by side: with
// one token that is four chains, as many as the latency of an FMA needs, and four long streams of
// memory. The CPU's prefetcher follows those, but begins anew with each group's 16 to 128 KiB:
// asked 2 KiB ahead, for the next groups' beginnings too, one thread is 1.24 times as fast. Tiles
// are of 16 rows by up to 6 tokens: 12 sums, two vectors of weights and one of activations fit the
// 16 registers. Up to kDirectTokens tiles convert the weights themselves, in the shadow of the
// FMAs; more tokens are worth a copy in f32 in the first-level cache.
#include "kernels/avx2/packed_driver.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

constexpr std::size_t kTileTokens = 6;
constexpr std::size_t kDirectTokens = 24;
constexpr std::size_t kFewAhead = 2048;
// Elements that are converted at a time: 16 KiB of 16 rows, half of the smallest first-level cache.
constexpr std::size_t kChunk = 256;

template <DataType kType>
constexpr std::size_t kVectorBytes = kPackedRows * (kType == DataType::kF32 ? 4 : 2);

template <DataType kType>
constexpr std::size_t kPerLine = 64 / kVectorBytes<kType>;

// One element of eight rows.
template <DataType kType>
RECUA_AVX2_INLINE __m256 load8(const std::byte* p) {
  if constexpr (kType == DataType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  } else if constexpr (kType == DataType::kF16) {
    return _mm256_cvtph_ps(load128(p));
  } else {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
  }
}

// The rows [r, r + 8 * kGroups) by the tokens [first, first + kTokens).
template <DataType kType, std::size_t kGroups, std::size_t kTokens>
[[gnu::noinline]] void some_groups(const MatmulArgs& args, std::size_t r, std::size_t first) {
  const std::byte* const w = args.w + r / kPackedRows * args.w_stride;
  const float* x[kTokens];
  __m256 sum[kGroups][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[first + t]);
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) sum[g][t] = _mm256_setzero_ps();
  }
  const auto step = [&](std::size_t k) __attribute__((always_inline)) {
    const std::byte* const at = w + k * kVectorBytes<kType>;
    if constexpr (kGroups > kTokens) {  // The fewer operands are the ones to keep.
      __m256 value[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) value[t] = _mm256_broadcast_ss(x[t] + k);
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        const __m256 weight = load8<kType>(at + g * args.w_stride);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          sum[g][t] = _mm256_fmadd_ps(weight, value[t], sum[g][t]);
        }
      }
    } else {
      __m256 weight[kGroups];
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) weight[g] = load8<kType>(at + g * args.w_stride);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m256 value = _mm256_broadcast_ss(x[t] + k);
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          sum[g][t] = _mm256_fmadd_ps(weight[g], value, sum[g][t]);
        }
      }
    }
  };
  std::size_t k = 0;
  for (; k + kPerLine<kType> <= args.n_in; k += kPerLine<kType>) {
    const std::size_t at = k * kVectorBytes<kType>;
    const std::size_t next =
        kTokens >= 4 ? at + kPrefetchBytes : prefetch_offset(at, args.w_stride, kGroups, kFewAhead);
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      prefetch<64>(w + g * args.w_stride + next);
    }
    RECUA_UNROLL
    for (std::size_t i = 0; i < kPerLine<kType>; ++i) step(k + i);
  }
  for (; k < args.n_in; ++k) step(k);
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::size_t row = r + g * kPackedRows;
      store_rows(args.out[first + t] + args.out_offset + row, sum[g][t], args.n_rows - row);
    }
  }
}

// How many of n tokens the next tile takes: never one or two beside a full one.
RECUA_AVX2_INLINE std::size_t tile_tokens(std::size_t n) {
  if (n >= 2 * kTileTokens) return kTileTokens;
  return n > kTileTokens ? (n + 1) / 2 : n;
}

// fn.operator()<kTokens>() for a number of tokens from 1 to kTileTokens.
template <class Fn>
RECUA_AVX2_INLINE void with_tokens(std::size_t n, Fn&& fn) {
  switch (n) {
    case 1:
      return fn.template operator()<1>();
    case 2:
      return fn.template operator()<2>();
    case 3:
      return fn.template operator()<3>();
    case 4:
      return fn.template operator()<4>();
    case 5:
      return fn.template operator()<5>();
    default:
      return fn.template operator()<6>();
  }
}

// All rows by all tokens: each group's bytes are read from memory once, and again from the
// second-level cache if there are more tokens than a tile has.
template <DataType kType, std::size_t kGroups>
void few_float_tokens(const MatmulArgs& args) {
  const auto rows = [&]<std::size_t kSome>(std::size_t r) __attribute__((always_inline)) {
    for (std::size_t t = 0; t < args.n_tokens;) {
      const std::size_t n = tile_tokens(args.n_tokens - t);
      with_tokens(n, [&]<std::size_t kTokens>() __attribute__((always_inline)) {
        if constexpr (kSome * kTokens <= 2 * kTileTokens) {
          some_groups<kType, kSome, kTokens>(args, r, t);
        }
      });
      t += n;
    }
  };
  std::size_t r = 0;
  for (; r + (kGroups - 1) * kPackedRows < args.n_rows; r += kGroups * kPackedRows) {
    rows.template operator()<kGroups>(r);
  }
  for (; r < args.n_rows; r += kPackedRows) rows.template operator()<1>(r);
}

// Adds n elements from k on: w is f32 [n][kGroups][8], sums [kTokens][16].
template <std::size_t kGroups, std::size_t kTokens>
[[gnu::noinline]] void float_tile(const float* w, const std::byte* const* x_rows, std::size_t k,
                                  std::size_t n, float* sums) {
  const float* x[kTokens];
  __m256 sum[kGroups][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(x_rows[t]) + k;
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g)
      sum[g][t] = _mm256_load_ps(sums + t * kSumRow + 8 * g);
  }
  for (std::size_t i = 0; i < n; ++i) {
    __m256 weight[kGroups];
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) weight[g] = _mm256_load_ps(w + 8 * (kGroups * i + g));
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m256 value = _mm256_broadcast_ss(x[t] + i);
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        sum[g][t] = _mm256_fmadd_ps(weight[g], value, sum[g][t]);
      }
    }
  }
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g)
      _mm256_store_ps(sums + t * kSumRow + 8 * g, sum[g][t]);
  }
}

template <std::size_t kGroups>
void float_tiles(const float* w, const std::byte* const* x, std::size_t n_tokens, std::size_t k,
                 std::size_t n, float (*sums)[kSumRow]) {
  for (std::size_t t = 0; t < n_tokens;) {
    const std::size_t n_tile = tile_tokens(n_tokens - t);
    with_tokens(n_tile, [&]<std::size_t kTokens>() __attribute__((always_inline)) {
      float_tile<kGroups, kTokens>(w, x + t, k, n, sums[t]);
    });
    t += n_tile;
  }
}

// Rows [r, r + 8 * kGroups) by the tokens [t0, t0 + n_tokens).
template <DataType kType, std::size_t kGroups>
void some_float_rows(const MatmulArgs& args, std::size_t r, std::size_t t0, std::size_t n_tokens) {
  alignas(64) float sums[kTokenBlock][kSumRow];
  alignas(64) float weights[kChunk][kGroups][kPackedRows];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t i = 0; i < kSumRow; i += 8) _mm256_store_ps(sums[t] + i, _mm256_setzero_ps());
  }
  const std::byte* const w = args.w + r / kPackedRows * args.w_stride;
  for (std::size_t k = 0; k < args.n_in; k += kChunk) {
    const std::size_t n = args.n_in - k < kChunk ? args.n_in - k : kChunk;
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::byte* const from = w + g * args.w_stride + k * kVectorBytes<kType>;
      for (std::size_t i = 0; i < n; ++i) {
        const std::byte* const at = from + i * kVectorBytes<kType>;
        if (i % kPerLine<kType> == 0) prefetch<64>(at + kChunk * kVectorBytes<kType>);
        _mm256_store_ps(weights[i][g], load8<kType>(at));
      }
    }
    float_tiles<kGroups>(weights[0][0], args.x + t0, n_tokens, k, n, sums);
  }
  for (std::size_t t = 0; t < n_tokens; ++t) {
    float* const out = args.out[t0 + t] + args.out_offset + r;
    for (std::size_t g = 0; g < kGroups; ++g) {
      store_rows(out + g * kPackedRows, _mm256_load_ps(sums[t] + g * kPackedRows),
                 args.n_rows - r - g * kPackedRows);
    }
  }
}

template <DataType kType>
RECUA_AVX2_INLINE void multiply_float(const MatmulArgs& args) {
  if (args.n_tokens <= 3) return few_float_tokens<kType, 4>(args);
  if (args.n_tokens <= kDirectTokens) return few_float_tokens<kType, 2>(args);
  for (std::size_t t = 0; t < args.n_tokens; t += kTokenBlock) {
    const std::size_t n = args.n_tokens - t < kTokenBlock ? args.n_tokens - t : kTokenBlock;
    std::size_t r = 0;
    for (; r + kPackedRows < args.n_rows; r += 2 * kPackedRows) {
      some_float_rows<kType, 2>(args, r, t, n);
    }
    if (r < args.n_rows) some_float_rows<kType, 1>(args, r, t, n);
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

}  // namespace recua::kernels::avx2
