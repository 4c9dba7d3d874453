// Packed types with blocks of 32. Both become unsigned bytes with an offset of 128 and differ in
// nothing else: of Q8_0 by changing the sign bit, of Q4_0 with each nibble as the upper half of a
// byte (16 times its value, so the scale is a sixteenth). A block's sum is at most 255 * 127 * 32 =
// 1.04e6, which f32 still holds exactly.
#include "kernels/avx512/packed_driver.h"

namespace recua::kernels::avx512 {
namespace {

using quant::DataType;

// The eight vectors of a block, in order of the elements.
struct BlockWeights {
  __m512i q[8];
};

struct BytesOfQ4_0 {
  static constexpr std::size_t kPieceBytes = 144;
  RECUA_AVX512_INLINE BlockWeights weights(const std::uint8_t* a, const std::uint8_t* b) {
    BlockWeights out;
    const __m512i mask = _mm512_set1_epi8(-16);
    RECUA_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      const __m512i bytes = load_pair(a + 16 + 32 * j, b + 16 + 32 * j);
      out.q[j] = _mm512_and_si512(_mm512_slli_epi16(bytes, 4), mask);
      out.q[4 + j] = _mm512_and_si512(bytes, mask);
    }
    return out;
  }
  RECUA_AVX512_INLINE __m512 scales(const std::uint8_t* a, const std::uint8_t* b) {
    return _mm512_mul_ps(load_pair_f16(a, b), _mm512_set1_ps(0x1p-4F));
  }
};

struct BytesOfQ8_0 {
  static constexpr std::size_t kPieceBytes = 272;
  RECUA_AVX512_INLINE BlockWeights weights(const std::uint8_t* a, const std::uint8_t* b) {
    BlockWeights out;
    RECUA_UNROLL
    for (std::size_t j = 0; j < 8; ++j) {
      out.q[j] =
          _mm512_xor_si512(load_pair(a + 16 + 32 * j, b + 16 + 32 * j), _mm512_set1_epi8(-128));
    }
    return out;
  }
  RECUA_AVX512_INLINE __m512 scales(const std::uint8_t* a, const std::uint8_t* b) {
    return load_pair_f16(a, b);
  }
};

template <class Bytes>
struct Packed32 {
  using Block = ActivationBlock32;
  static constexpr std::size_t kBlock = 32;
  static constexpr std::size_t kPieceBytes = Bytes::kPieceBytes;
  static constexpr std::size_t kChunk = 16;
  static constexpr std::size_t kFew = 8;

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][8][kVectors][64];
    alignas(64) float d[kChunk][kVectors][16];
  };

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(GroupPair from, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = from.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = from.w[1] + b * kPieceBytes;
      prefetch<kPieceBytes>(first + kChunk * kPieceBytes);
      prefetch<kPieceBytes>(second + kChunk * kPieceBytes);
      const BlockWeights w = Bytes::weights(first, second);
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) store512(to.q[b][j][v], w.q[j]);
      _mm512_store_ps(to.d[b][v], Bytes::scales(first, second));
    }
  }

  // The end of every block: sum + s * (dx * d), s exact.
  RECUA_AVX512_INLINE __m512 add_block(__m512i s, float dx, __m512 d, __m512 sum) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d, _mm512_set1_ps(dx)), sum);
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, SumRow* sums) {
    const Block* at[kTokens];
    __m512 sum[kVectors][kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      at[t] = x[t];
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) sum[v][t] = _mm512_load_ps(sums[t] + 16 * v);
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m512i s[kVectors][kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) s[v][t] = _mm512_set1_epi32(at[t][b].offset);
      }
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m512i value = broadcast32(at[t][b].q + 4 * j);
          RECUA_UNROLL
          for (std::size_t v = 0; v < kVectors; ++v) {
            s[v][t] = _mm512_dpbusd_epi32(s[v][t], load512(w.q[b][j][v]), value);
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          sum[v][t] = add_block(s[v][t], at[t][b].d, _mm512_load_ps(w.d[b][v]), sum[v][t]);
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) _mm512_store_ps(sums[t] + 16 * v, sum[v][t]);
    }
  }

  template <std::size_t kTokens>
  RECUA_AVX512_INLINE void dot(GroupPair w, const Block* const* x, std::size_t n, __m512* sums) {
    const Block* at[kTokens];
    __m512 sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      at[t] = x[t];
      sum[t] = _mm512_setzero_ps();
    }
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = w.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = w.w[1] + b * kPieceBytes;
      prefetch<kPieceBytes>(first + kPrefetchBytes);
      prefetch<kPieceBytes>(second + kPrefetchBytes);
      __m512i s[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) s[t] = _mm512_set1_epi32(at[t][b].offset);
      const BlockWeights weights = Bytes::weights(first, second);
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          s[t] = _mm512_dpbusd_epi32(s[t], weights.q[j], broadcast32(at[t][b].q + 4 * j));
        }
      }
      const __m512 d = Bytes::scales(first, second);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) sum[t] = add_block(s[t], at[t][b].d, d, sum[t]);
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sums[t] = sum[t];
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ4_0>(const MatmulArgs& args) {
  multiply_packed<Packed32<BytesOfQ4_0>>(args);
}
template <>
void packed_matmul<DataType::kQ8_0>(const MatmulArgs& args) {
  multiply_packed<Packed32<BytesOfQ8_0>>(args);
}

}  // namespace recua::kernels::avx512
