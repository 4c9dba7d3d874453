// Packed F32, F16 and BF16: a vector is one element of sixteen rows (half a group), its activation
// is broadcast, and every output is one chain of FMAs over k in order, whatever the tile: the same
// bits as AVX2's.
//
// One to three tokens take a group as it lies in memory: one thread reads F16 at 96 % of what plain
// loads do, two on one core at 97. (Groups of eight rows, four side by side, were four streams of
// memory and came to 91.)
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
constexpr std::size_t kGroupVectors = kPackedFloatRows / kVectorRows;
constexpr std::size_t kManyGroups = 2;

/// Bytes of one element of a vector of rows.
template <DataType kType>
constexpr std::size_t kVectorBytes = kVectorRows * (kType == DataType::kF32 ? 4 : 2);
/// And of a group.
template <DataType kType>
constexpr std::size_t kElementBytes = kGroupVectors * kVectorBytes<kType>;
/// Elements that go through all tokens together.
template <DataType kType>
constexpr std::size_t kChunk = 16384 / kElementBytes<kType>;

template <DataType kType>
RECUA_AVX512_INLINE __m512 load16(const std::uint8_t* p) {
  if constexpr (kType == DataType::kF32) {
    return _mm512_loadu_ps(p);
  } else if constexpr (kType == DataType::kF16) {
    return _mm512_cvtph_ps(load256(p));
  } else {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
  }
}

/// The group that begins with row r.
RECUA_AVX512_INLINE const std::uint8_t* group_at(const MatmulArgs& args, std::size_t r) {
  return reinterpret_cast<const std::uint8_t*>(args.w + r / kPackedFloatRows * args.w_stride);
}

/// As many of a vector's rows as there are of the first n_rows from `at` on.
RECUA_AVX512_INLINE void store_vector(float* out, __m512 sums, std::size_t at, std::size_t n_rows) {
  if (at < n_rows) store_rows(out + at, sums, n_rows - at);
}

// The group of row r by all of kTokens tokens.
template <DataType kType, std::size_t kTokens>
[[gnu::noinline]] void one_group(const MatmulArgs& args, std::size_t r) {
  const float* x[kTokens];
  __m512 sum[kGroupVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(args.x[t]);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kGroupVectors; ++v) sum[v][t] = _mm512_setzero_ps();
  }
  const std::uint8_t* const w = group_at(args, r);
  avx2::each_step(args.n_in, [&](std::size_t k) __attribute__((always_inline)) {
    const std::uint8_t* const element = w + k * kElementBytes<kType>;
    avx2::prefetch<kElementBytes<kType>>(element + kAhead);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kGroupVectors; ++v) {
      const __m512 weight = load16<kType>(element + v * kVectorBytes<kType>);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[v][t] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[t][k]), sum[v][t]);
      }
    }
  });
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kGroupVectors; ++v) {
      store_vector(args.out[t] + args.out_offset, sum[v][t], r + v * kVectorRows, args.n_rows);
    }
  }
}

template <DataType kType, std::size_t kTokens>
void few_float_tokens(const MatmulArgs& args) {
  for (std::size_t r = 0; r < args.n_rows; r += kPackedFloatRows) {
    one_group<kType, kTokens>(args, r);
  }
}

/// Sums of rows on their way through memory, for each token.
using ManySums = float[kManyGroups * kPackedFloatRows];

/// Elements of some groups, and what to ask for meanwhile: `ahead` bytes behind each of them.
template <std::size_t kGroups>
struct Weights {
  const std::uint8_t* groups[kGroups];
  std::size_t n;
  std::size_t ahead;
};

// Adds the products of some elements, for which x begins with element k, to sums[kTokens].
template <DataType kType, std::size_t kGroups, std::size_t kTokens>
[[gnu::noinline]] void tile(const Weights<kGroups>& w, const std::byte* const* x_rows,
                            std::size_t k, ManySums* sums) {
  constexpr std::size_t kVectors = kGroups * kGroupVectors;
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
  avx2::each_step(w.n, [&](std::size_t i) __attribute__((always_inline)) {
    __m512 weight[kVectors];
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::uint8_t* const element = w.groups[g] + i * kElementBytes<kType>;
      avx2::prefetch<kElementBytes<kType>>(element + w.ahead);
      RECUA_UNROLL
      for (std::size_t v = 0; v < kGroupVectors; ++v) {
        weight[kGroupVectors * g + v] = load16<kType>(element + v * kVectorBytes<kType>);
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m512 value = _mm512_set1_ps(x[t][i]);
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        sum[v][t] = _mm512_fmadd_ps(weight[v], value, sum[v][t]);
      }
    }
  });
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(sums[t] + v * kVectorRows, sum[v][t]);
    }
  }
}

// tile() of n tokens, 1 to kTileTokens.
template <DataType kType, std::size_t kGroups, std::size_t kTokens = kTileTokens>
RECUA_AVX512_INLINE void tile_of(std::size_t n, const Weights<kGroups>& w,
                                 const std::byte* const* x, std::size_t k, ManySums* sums) {
  if (n == kTokens) {
    tile<kType, kGroups, kTokens>(w, x, k, sums);
  } else if constexpr (kTokens > 1) {
    tile_of<kType, kGroups, kTokens - 1>(n, w, x, k, sums);
  }
}

// All tokens in tiles as even as can be.
template <DataType kType, std::size_t kGroups>
void tiles(Weights<kGroups> w, const std::byte* const* x, std::size_t n_tokens, std::size_t k,
           ManySums* sums) {
  for (std::size_t t = 0; t < n_tokens;) {
    const std::size_t n = avx2::even_part(n_tokens - t, kTileTokens);
    tile_of<kType, kGroups>(n, w, x + t, k, sums + t);
    t += n;
    w.ahead = 0;  // Once is enough.
  }
}

// The kGroups groups from row r on by the tokens [t0, t0 + n_tokens).
template <DataType kType, std::size_t kGroups>
void many_rows(const MatmulArgs& args, std::size_t r, std::size_t t0, std::size_t n_tokens) {
  constexpr std::size_t kRows = kGroups * kPackedFloatRows;
  alignas(64) ManySums sums[kTokenBlock];
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t v = 0; v < kRows; v += kVectorRows) {
      _mm512_store_ps(sums[t] + v, _mm512_setzero_ps());
    }
  }
  for (std::size_t k = 0; k < args.n_in; k += kChunk<kType>) {
    const std::size_t at = k * kElementBytes<kType>;
    const bool last = k + kChunk<kType> >= args.n_in;
    Weights<kGroups> w;
    for (std::size_t g = 0; g < kGroups; ++g) {
      w.groups[g] = group_at(args, r + g * kPackedFloatRows) + at;
    }
    w.n = last ? args.n_in - k : kChunk<kType>;
    // The next elements, or those that the next rows begin with.
    w.ahead = last ? kGroups * args.w_stride - at : kChunk<kType> * kElementBytes<kType>;
    tiles<kType, kGroups>(w, args.x + t0, n_tokens, k, sums);
  }
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t v = 0; v < kRows; v += kVectorRows) {
      store_vector(args.out[t0 + t] + args.out_offset, _mm512_load_ps(sums[t] + v), r + v,
                   args.n_rows);
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
    for (; r + kPackedFloatRows < args.n_rows; r += kManyGroups * kPackedFloatRows) {
      many_rows<kType, kManyGroups>(args, r, t, n);
    }
    if (r < args.n_rows) many_rows<kType, 1>(args, r, t, n);
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
