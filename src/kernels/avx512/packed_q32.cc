// Packed types with blocks of 32. Both become unsigned bytes with an offset of 128 and differ in
// nothing else: of Q8_0 by changing the sign bit, of Q4_0 with each nibble as the upper half of a
// byte (16 times its value, so the scale is a sixteenth). A block's sum is at most 255 * 127 * 32 =
// 1.04e6, which f32 still holds exactly.
#include "kernels/avx512/packed_driver.h"

namespace recua::kernels::avx512 {
namespace {

using quant::DataType;

// The eight vectors of a block, in order of the elements.
template <class Groups>
struct BlockWeights {
  typename Groups::Ints q[8];
};

struct BytesOfQ4_0 {
  static constexpr std::size_t kPieceBytes = 144;
  template <class Groups>
  RECUA_AVX512_INLINE BlockWeights<Groups> weights(const Groups& piece) {
    BlockWeights<Groups> out;
    RECUA_UNROLL
    for (std::size_t j = 0; j < 4; ++j) {
      const auto bytes = piece.dwords(16 + 32 * j);
      out.q[j] = (bytes << 4) & Groups::bytes(0xf0);
      out.q[4 + j] = bytes & Groups::bytes(0xf0);
    }
    return out;
  }
  template <class Groups>
  RECUA_AVX512_INLINE typename Groups::Floats scales(const Groups& piece) {
    return Groups::multiply(piece.halves(0), Groups::floats(0x1p-4F));
  }
};

struct BytesOfQ8_0 {
  static constexpr std::size_t kPieceBytes = 272;
  template <class Groups>
  RECUA_AVX512_INLINE BlockWeights<Groups> weights(const Groups& piece) {
    BlockWeights<Groups> out;
    RECUA_UNROLL
    for (std::size_t j = 0; j < 8; ++j) {
      out.q[j] = piece.dwords(16 + 32 * j) ^ Groups::bytes(0x80);
    }
    return out;
  }
  template <class Groups>
  RECUA_AVX512_INLINE typename Groups::Floats scales(const Groups& piece) {
    return piece.halves(0);
  }
};

template <class Bytes>
struct Packed32 {
  using Block = ActivationBlock32;
  static constexpr std::size_t kBlock = 32;
  static constexpr std::size_t kPieceBytes = Bytes::kPieceBytes;
  static constexpr std::size_t kChunk = 16;
  static constexpr std::size_t kFew = 8;
  static constexpr std::size_t kWideFrom = 4;

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][8][kVectors][64];
    alignas(64) float d[kChunk][kVectors][16];
  };

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(TwoGroups w, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const TwoGroups piece = w.from(b * kPieceBytes);
      const auto weights = Bytes::weights(piece);
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) store512(to.q[b][j][v], weights.q[j]);
      _mm512_store_ps(to.d[b][v], Bytes::scales(piece));
    }
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, Ahead<kVectors>& ahead, SumRow* sums) {
    const Block* at[kTokens];
    __m512 sum[kVectors][kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      at[t] = x[t];
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) sum[v][t] = _mm512_load_ps(sums[t] + 16 * v);
    }
    for (std::size_t b = 0; b < n; ++b) {
      ahead.template step<2>();
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
          const __m512i value = Lanes16::ints(four_bytes(at[t][b].q + 4 * j));
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
          sum[v][t] = add_block<Lanes16>(s[v][t], at[t][b].d, _mm512_load_ps(w.d[b][v]), sum[v][t]);
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) _mm512_store_ps(sums[t] + 16 * v, sum[v][t]);
    }
  }

  template <std::size_t kTokens, class Groups>
  RECUA_AVX512_INLINE void dot(Groups w, const Block* const* x, std::size_t n, std::size_t jump,
                               typename Groups::Floats* sums) {
    const Block* at[kTokens];
    typename Groups::Floats sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      at[t] = x[t];
      sum[t] = Groups::floats(0.0F);
    }
    for (std::size_t b = 0; b < n; ++b) {
      const Groups piece = w.from(b * kPieceBytes);
      piece.template prefetch<kPieceBytes>(bytes_ahead(b * kPieceBytes, n * kPieceBytes, jump));
      typename Groups::Ints s[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) s[t] = Groups::ints(at[t][b].offset);
      const auto weights = Bytes::weights(piece);
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          s[t] = Groups::add_products(s[t], weights.q[j],
                                      Groups::ints(four_bytes(at[t][b].q + 4 * j)));
        }
      }
      const auto d = Bytes::scales(piece);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[t] = add_block<Groups>(s[t], at[t][b].d, d, sum[t]);
      }
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
