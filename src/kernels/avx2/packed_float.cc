// Packed F32, F16 and BF16: a vector is one element of eight rows (a quarter of a group), its
// activation is broadcast, and every output is one chain of FMAs over k in order, whatever the
// tile.
//
// One to three tokens take a group as it lies in memory: with one token that is four chains, as
// many as the latency of an FMA needs. More take tiles of 16 rows by up to 6 tokens, over 16 KiB of
// weights at a time, which stay in the first-level cache for all tokens: 12 sums, two vectors of
// weights and one of activations fit the 16 registers. Up to kDirectTokens the tiles convert the
// weights themselves, in the shadow of the FMAs; more tokens are worth a copy in f32.
#include "kernels/avx2/packed_driver.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

constexpr std::size_t kFewTokens = 3;
/// Bytes that few tokens ask for ahead. One thread of Zen 5: 4 KiB 97 % of plain loads, 2 KiB 91.
constexpr std::size_t kFewAhead = 4096;
constexpr std::size_t kTileTokens = 6;
constexpr std::size_t kDirectTokens = 24;
constexpr std::size_t kLanes = 8;
constexpr std::size_t kTileRows = 2 * kLanes;

/// Bytes of one element of a vector of rows.
template <DataType kType>
constexpr std::size_t kVectorBytes = kLanes * (kType == DataType::kF32 ? 4 : 2);
/// And of a group.
template <DataType kType>
constexpr std::size_t kElementBytes = kPackedFloatRows / kLanes * kVectorBytes<kType>;

/// Of weights that go through all tokens together.
constexpr std::size_t kChunkBytes = 16384;

/// f32 sums on their way through memory: [token][row of the group].
using GroupSums = float[kPackedFloatRows];

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

// The group at w by kTokens tokens: sums [kTokens].
template <DataType kType, std::size_t kTokens>
[[gnu::noinline]] void one_group(const std::byte* w, const std::byte* const* x_rows,
                                 std::size_t n_in, GroupSums* sums) {
  constexpr std::size_t kVectors = kPackedFloatRows / kLanes;
  const float* x[kTokens];
  __m256 sum[kVectors][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(x_rows[t]);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sum[v][t] = _mm256_setzero_ps();
  }
  each_step(n_in, [&](std::size_t k) __attribute__((always_inline)) {
    const std::byte* const element = w + k * kElementBytes<kType>;
    prefetch<kElementBytes<kType>>(element + kFewAhead);
    __m256 value[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) value[t] = _mm256_broadcast_ss(x[t] + k);
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      const __m256 weight = load8<kType>(element + v * kVectorBytes<kType>);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[v][t] = _mm256_fmadd_ps(weight, value[t], sum[v][t]);
      }
    }
  });
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) _mm256_store_ps(sums[t] + v * kLanes, sum[v][t]);
  }
}

/// n elements of the rows of a tile, kStride bytes from one to the next, and what to ask for
/// meanwhile: `ahead` bytes behind each of them.
struct TileWeights {
  const std::byte* at;
  std::size_t n;
  std::size_t ahead;
};

// Adds their products with kTokens tokens, for which x begins with element k, to sums + row.
template <DataType kType, std::size_t kStride, std::size_t kTokens>
[[gnu::noinline]] void float_tile(TileWeights w, const std::byte* const* x_rows, std::size_t k,
                                  GroupSums* sums, std::size_t row) {
  const float* x[kTokens];
  __m256 sum[2][kTokens];
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    x[t] = reinterpret_cast<const float*>(x_rows[t]) + k;
    RECUA_UNROLL
    for (std::size_t v = 0; v < 2; ++v) sum[v][t] = _mm256_load_ps(sums[t] + row + v * kLanes);
  }
  each_step(w.n, [&](std::size_t i) __attribute__((always_inline)) {
    const std::byte* const element = w.at + i * kStride;
    prefetch<kStride>(element + w.ahead);
    const __m256 weight[2] = {load8<kType>(element), load8<kType>(element + kVectorBytes<kType>)};
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      const __m256 value = _mm256_broadcast_ss(x[t] + i);
      RECUA_UNROLL
      for (std::size_t v = 0; v < 2; ++v) sum[v][t] = _mm256_fmadd_ps(weight[v], value, sum[v][t]);
    }
  });
  RECUA_UNROLL
  for (std::size_t t = 0; t < kTokens; ++t) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < 2; ++v) _mm256_store_ps(sums[t] + row + v * kLanes, sum[v][t]);
  }
}

// float_tile() of n tokens, 1 to kTileTokens.
template <DataType kType, std::size_t kStride, std::size_t kTokens = kTileTokens>
RECUA_AVX2_INLINE void tile_of(std::size_t n, TileWeights w, const std::byte* const* x,
                               std::size_t k, GroupSums* sums, std::size_t row) {
  if (n == kTokens) {
    float_tile<kType, kStride, kTokens>(w, x, k, sums, row);
  } else if constexpr (kTokens > 1) {
    tile_of<kType, kStride, kTokens - 1>(n, w, x, k, sums, row);
  }
}

template <DataType kType, std::size_t kStride>
void float_tiles(TileWeights w, const std::byte* const* x, std::size_t n_tokens, std::size_t k,
                 GroupSums* sums, std::size_t row) {
  for (std::size_t t = 0; t < n_tokens;) {
    const std::size_t n = even_part(n_tokens - t, kTileTokens);
    tile_of<kType, kStride>(n, w, x + t, k, sums + t, row);
    t += n;
    w.ahead = 0;  // Once is enough.
  }
}

// n elements of kTileRows rows, the first at w.at, become f32 [n][kTileRows].
template <DataType kType>
RECUA_AVX2_INLINE void convert(TileWeights w, float* to) {
  for (std::size_t i = 0; i < w.n; ++i) {
    const std::byte* const element = w.at + i * kElementBytes<kType>;
    prefetch<kElementBytes<kType>>(element + w.ahead);
    _mm256_store_ps(to + i * kTileRows, load8<kType>(element));
    _mm256_store_ps(to + i * kTileRows + kLanes, load8<kType>(element + kVectorBytes<kType>));
  }
}

// The group at w, of whose rows there are n_rows, by n_tokens tokens: sums [n_tokens].
template <DataType kType>
void group_by_tiles(const std::byte* w, std::size_t n_rows, const std::byte* const* x,
                    std::size_t n_tokens, std::size_t n_in, GroupSums* sums) {
  constexpr std::size_t kChunk = kChunkBytes / kElementBytes<kType>;
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t i = 0; i < kPackedFloatRows; i += kLanes) {
      _mm256_store_ps(sums[t] + i, _mm256_setzero_ps());
    }
  }
  alignas(64) float converted[kChunk * kTileRows];
  for (std::size_t k = 0; k < n_in; k += kChunk) {
    const std::size_t n = n_in - k < kChunk ? n_in - k : kChunk;
    for (std::size_t row = 0; row < kPackedFloatRows && row < n_rows; row += kTileRows) {
      const std::byte* const at = w + k * kElementBytes<kType> + row / kLanes * kVectorBytes<kType>;
      const TileWeights packed = {at, n, row == 0 ? kChunkBytes : 0};  // Once is enough.
      if (kType == DataType::kF32 || n_tokens <= kDirectTokens) {
        float_tiles<kType, kElementBytes<kType>>(packed, x, n_tokens, k, sums, row);
      } else {
        convert<kType>(packed, converted);
        const auto* const copy = reinterpret_cast<const std::byte*>(converted);
        float_tiles<DataType::kF32, kTileRows * sizeof(float)>({copy, n, 0}, x, n_tokens, k, sums,
                                                               row);
      }
    }
  }
}

template <DataType kType>
RECUA_AVX2_INLINE void multiply_float(const MatmulArgs& args) {
  alignas(64) GroupSums sums[kTokenBlock];
  for (std::size_t t0 = 0; t0 < args.n_tokens; t0 += kTokenBlock) {
    const std::size_t n = args.n_tokens - t0 < kTokenBlock ? args.n_tokens - t0 : kTokenBlock;
    const std::byte* const* const x = args.x + t0;
    for (std::size_t r = 0; r < args.n_rows; r += kPackedFloatRows) {
      const std::byte* const w = args.w + r / kPackedFloatRows * args.w_stride;
      const std::size_t n_rows = args.n_rows - r;
      if (n == 1) {
        one_group<kType, 1>(w, x, args.n_in, sums);
      } else if (n == 2) {
        one_group<kType, 2>(w, x, args.n_in, sums);
      } else if (n == kFewTokens) {
        one_group<kType, kFewTokens>(w, x, args.n_in, sums);
      } else {
        group_by_tiles<kType>(w, n_rows, x, n, args.n_in, sums);
      }
      for (std::size_t t = 0; t < n; ++t) {
        float* const out = args.out[t0 + t] + args.out_offset + r;
        for (std::size_t i = 0; i < kPackedFloatRows && i < n_rows; i += kLanes) {
          store_rows(out + i, _mm256_load_ps(sums[t] + i), n_rows - i);
        }
      }
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

}  // namespace recua::kernels::avx2
