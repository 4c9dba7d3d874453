// Packed types with blocks of 32.
//
// Q4_0: the nibbles are unsigned bytes as they are. Eight products of a row's 16-bit sum are at
// most 16 * 15 * 127 = 30480, so a block is summed in 16 bits before it is widened; the offset, 8
// times the activations' sum, comes off in 32.
// Q8_0: two products may be 2 * 128 * 127, so nothing can be summed in 16 bits. Weights and
// activations are widened instead: vpmaddwd of 16 bits each is exact, and as fast as anything that
// was tried (docs/performance.md).
#include "kernels/avx2/packed_driver.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

RECUA_AVX2_INLINE __m256i low_nibbles(__m256i bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
RECUA_AVX2_INLINE __m256i high_nibbles(__m256i bytes) {
  return low_nibbles(_mm256_srli_epi16(bytes, 4));
}

// The end of every block: sum + s * d * scale, s exact.
RECUA_AVX2_INLINE __m256 add_block(__m256i s, const float* d, __m256 scale, __m256 sum) {
  const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_broadcast_ss(d));
  return _mm256_fmadd_ps(value, scale, sum);
}

struct PackedQ4_0 {
  static constexpr std::size_t kBlock = 32;
  static constexpr std::size_t kPieceBytes = 144;
  static constexpr std::size_t kChunk = 16;
  static constexpr std::size_t kFew = 4;

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][8][kGroups][32];
    alignas(64) float d[kChunk][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      prefetch<kPieceBytes>(piece + kChunk * kPieceBytes);
      _mm256_store_ps(to.d[b][g], load8_f16(piece));
      for (std::size_t j = 0; j < 4; ++j) {
        const __m256i bytes = load256(piece + 16 + 32 * j);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][j][g]), low_nibbles(bytes));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][4 + j][g]), high_nibbles(bytes));
      }
    }
  }

  template <std::size_t kGroups, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kGroups>& w, const std::byte* const* x,
                                     std::size_t n_in, std::size_t begin, std::size_t n,
                                     float* sums) {
    const std::int8_t* q[kTokens];
    const float* d[kTokens];
    const std::int32_t* eights[kTokens];
    __m256 sum[kGroups][kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q8_values(x[t]) + 32 * begin;
      d[t] = q8_scales(x[t], n_in) + begin;
      eights[t] = q8x32_eights(x[t], n_in) + begin;
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        sum[g][t] = _mm256_load_ps(sums + t * kSumRow + 8 * g);
      }
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m256i s[kGroups][kTokens];
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m256i value = broadcast32(q[t] + 32 * b + 4 * j);
          RECUA_UNROLL
          for (std::size_t g = 0; g < kGroups; ++g) {
            const __m256i product = _mm256_maddubs_epi16(load256(w.q[b][j][g]), value);
            s[g][t] = j == 0 ? product : _mm256_add_epi16(s[g][t], product);
            pin(s[g][t]);
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m256i offset = broadcast32(eights[t] + b);
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          const __m256i all = _mm256_madd_epi16(s[g][t], _mm256_set1_epi16(1));
          sum[g][t] = add_block(_mm256_sub_epi32(all, offset), d[t] + b, _mm256_load_ps(w.d[b][g]),
                                sum[g][t]);
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        _mm256_store_ps(sums + t * kSumRow + 8 * g, sum[g][t]);
      }
    }
  }

  template <std::size_t kTokens>
  [[gnu::noinline]] static void dot(const std::uint8_t* w, const std::byte* const* x,
                                    std::size_t n_in, float* sums) {
    const std::int8_t* q[kTokens];
    const float* d[kTokens];
    const std::int32_t* eights[kTokens];
    __m256 sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q8_values(x[t]);
      d[t] = q8_scales(x[t], n_in);
      eights[t] = q8x32_eights(x[t], n_in);
      sum[t] = _mm256_setzero_ps();
    }
    for (std::size_t b = 0; b < n_in / 32; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      prefetch<kPieceBytes>(piece + kPrefetchBytes);
      __m256i s[kTokens];
      RECUA_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        const __m256i bytes = load256(piece + 16 + 32 * j);
        const __m256i low = low_nibbles(bytes);
        const __m256i high = high_nibbles(bytes);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const std::int8_t* const at = q[t] + 32 * b + 4 * j;
          const __m256i product = _mm256_maddubs_epi16(low, broadcast32(at));
          s[t] = j == 0 ? product : _mm256_add_epi16(s[t], product);
          pin(s[t]);
          s[t] = _mm256_add_epi16(s[t], _mm256_maddubs_epi16(high, broadcast32(at + 16)));
          pin(s[t]);
        }
      }
      const __m256 scale = load8_f16(piece);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const __m256i all = _mm256_madd_epi16(s[t], _mm256_set1_epi16(1));
        sum[t] =
            add_block(_mm256_sub_epi32(all, broadcast32(eights[t] + b)), d[t] + b, scale, sum[t]);
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, sum[t]);
  }
};

struct PackedQ8_0 {
  static constexpr std::size_t kBlock = 32;
  static constexpr std::size_t kPieceBytes = 272;
  static constexpr std::size_t kChunk = 8;
  static constexpr std::size_t kFew = 4;

  // Of four elements of a row, 0 and 2 and then 1 and 3 become the two 16-bit halves of its lane:
  // that takes shifts only, and the activations have the same order.
  RECUA_AVX2_INLINE __m256i even(__m256i bytes) {
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
  }
  RECUA_AVX2_INLINE __m256i odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::int16_t q[kChunk][2][8][kGroups][16];  // Even elements, then odd ones.
    alignas(64) float d[kChunk][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      prefetch<kPieceBytes>(piece + kChunk * kPieceBytes);
      _mm256_store_ps(to.d[b][g], load8_f16(piece));
      for (std::size_t j = 0; j < 8; ++j) {
        const __m256i bytes = load256(piece + 16 + 32 * j);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][0][j][g]), even(bytes));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][1][j][g]), odd(bytes));
      }
    }
  }

  template <std::size_t kGroups, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kGroups>& w, const std::byte* const* x,
                                     std::size_t n_in, std::size_t begin, std::size_t n,
                                     float* sums) {
    const std::int16_t* q[kTokens];
    const float* d[kTokens];
    __m256 sum[kGroups][kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q16_values(x[t]) + 32 * begin;
      d[t] = q16_scales(x[t], n_in) + begin;
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        sum[g][t] = _mm256_load_ps(sums + t * kSumRow + 8 * g);
      }
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m256i s[kGroups][kTokens];
      RECUA_UNROLL
      for (std::size_t j = 0; j < 16; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m256i value = broadcast32(q[t] + 32 * b + 2 * j);
          RECUA_UNROLL
          for (std::size_t g = 0; g < kGroups; ++g) {
            const __m256i product = _mm256_madd_epi16(value, load256(w.q[b][j / 8][j % 8][g]));
            s[g][t] = j == 0 ? product : _mm256_add_epi32(s[g][t], product);
            pin(s[g][t]);
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          sum[g][t] = add_block(s[g][t], d[t] + b, _mm256_load_ps(w.d[b][g]), sum[g][t]);
        }
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        _mm256_store_ps(sums + t * kSumRow + 8 * g, sum[g][t]);
      }
    }
  }

  template <std::size_t kTokens>
  [[gnu::noinline]] static void dot(const std::uint8_t* w, const std::byte* const* x,
                                    std::size_t n_in, float* sums) {
    const std::int16_t* q[kTokens];
    const float* d[kTokens];
    __m256 sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q16_values(x[t]);
      d[t] = q16_scales(x[t], n_in);
      sum[t] = _mm256_setzero_ps();
    }
    for (std::size_t b = 0; b < n_in / 32; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      prefetch<kPieceBytes>(piece + kPrefetchBytes);
      __m256i s[kTokens];
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        const __m256i bytes = load256(piece + 16 + 32 * j);
        const __m256i evens = even(bytes);
        const __m256i odds = odd(bytes);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const std::int16_t* const at = q[t] + 32 * b + 2 * j;
          const __m256i product = _mm256_madd_epi16(evens, broadcast32(at));
          s[t] = j == 0 ? product : _mm256_add_epi32(s[t], product);
          pin(s[t]);
          s[t] = _mm256_add_epi32(s[t], _mm256_madd_epi16(odds, broadcast32(at + 16)));
          pin(s[t]);
        }
      }
      const __m256 scale = load8_f16(piece);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[t] = add_block(s[t], d[t] + b, scale, sum[t]);
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, sum[t]);
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ4_0>(const MatmulArgs& args) {
  multiply_packed<PackedQ4_0>(args);
}
template <>
void packed_matmul<DataType::kQ8_0>(const MatmulArgs& args) {
  multiply_packed<PackedQ8_0>(args);
}

}  // namespace recua::kernels::avx2
