#pragma once
/// Products with packed types of blocks of 32 whose numbers become unsigned bytes of at most five
/// bits. Only files built with -mavx2 -mfma -mf16c include this.
///
/// A row's 16-bit sum takes the 16 products of a block, and only its last value has to fit: 16 * 15
/// * 127 = 30480 for four bits as they are. Where an offset is taken off, -offset times the
/// activations' sum is the initial value, and the last is at most 16 * 16 * 127 = 32512: vpaddw
/// wraps in between. (Hence no -128 among the activations.)
///
/// Numbers<kType> has, beside kPieceBytes,
///   kOffset                     0, 8, 12 or 16: what is taken off each number
///   kHasMin                     value = d * (q - kOffset) + m, else without m
///   scale(piece), min(piece)    d and m of eight rows
///   pair(piece, j)              for j < 4 the elements 4 j and 16 + 4 j of eight rows

#include "kernels/avx2/packed_driver.h"

namespace recua::kernels::avx2 {

/// Two vectors that come from the same bytes.
struct Pair {
  __m256i low;
  __m256i high;
};

RECUA_AVX2_INLINE __m256i low_nibbles(__m256i bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
RECUA_AVX2_INLINE __m256i high_nibbles(__m256i bytes) {
  return low_nibbles(_mm256_srli_epi16(bytes, 4));
}
RECUA_AVX2_INLINE Pair nibbles_of(const std::uint8_t* p) {
  const __m256i bytes = load256(p);
  return {low_nibbles(bytes), high_nibbles(bytes)};
}

/// The activations' two sums (kernels/activation.h has them times -4) times -kOffset.
template <int kOffset>
RECUA_AVX2_INLINE __m256i first_sums(const std::int16_t* fours) {
  const __m256i value = broadcast32(fours);
  if constexpr (kOffset == 16) return _mm256_slli_epi16(value, 2);
  const __m256i eight = _mm256_add_epi16(value, value);
  if constexpr (kOffset == 8) return eight;
  static_assert(kOffset == 8 || kOffset == 12 || kOffset == 16);
  return _mm256_add_epi16(value, eight);
}

template <class Numbers>
struct PackedBytes {
  static constexpr std::size_t kBlock = 32;
  static constexpr std::size_t kPieceBytes = Numbers::kPieceBytes;
  static constexpr std::size_t kChunk = 16;
  static constexpr std::size_t kFew = 4;
  static constexpr int kOffset = Numbers::kOffset;
  static constexpr bool kHasMin = Numbers::kHasMin;

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][8][kGroups][32];
    alignas(64) float d[kChunk][kGroups][8];
    alignas(64) float m[kHasMin ? kChunk : 1][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      _mm256_store_ps(to.d[b][g], Numbers::scale(piece));
      if constexpr (kHasMin) _mm256_store_ps(to.m[b][g], Numbers::min(piece));
      for (std::size_t j = 0; j < 4; ++j) {
        const Pair pair = Numbers::pair(piece, j);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][j][g]), pair.low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][4 + j][g]), pair.high);
      }
    }
  }

  /// What a token brings, from one of its blocks on.
  struct Token {
    const std::int8_t* q;
    const float* d;
    const float* s;
    const std::int16_t* fours;
  };
  RECUA_AVX2_INLINE Token token(const std::byte* x, std::size_t n_in, std::size_t begin) {
    return {q8_values(x) + 32 * begin, q8_scales(x, n_in) + begin, q8x32_sums(x, n_in) + begin,
            q8x32_fours(x, n_in) + 2 * begin};
  }

  // The end of every block b: sum + d_x * d * s + s_x * m.
  RECUA_AVX2_INLINE __m256 add_block(__m256i s, const Token& x, std::size_t b, __m256 d, __m256 m,
                                     __m256 sum) {
    const __m256 all = _mm256_cvtepi32_ps(_mm256_madd_epi16(s, _mm256_set1_epi16(1)));
    sum = _mm256_fmadd_ps(_mm256_mul_ps(all, _mm256_broadcast_ss(x.d + b)), d, sum);
    if constexpr (kHasMin) sum = _mm256_fmadd_ps(_mm256_broadcast_ss(x.s + b), m, sum);
    return sum;
  }

  template <std::size_t kGroups, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kGroups>& w, const std::byte* const* x_rows,
                                     std::size_t n_in, std::size_t begin, std::size_t n,
                                     float* sums) {
    Token x[kTokens];
    __m256 sum[kGroups][kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      x[t] = token(x_rows[t], n_in, begin);
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        sum[g][t] = _mm256_load_ps(sums + t * kSumRow + 8 * g);
      }
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m256i s[kGroups][kTokens];
      if constexpr (kOffset != 0) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m256i first = first_sums<kOffset>(x[t].fours + 2 * b);
          RECUA_UNROLL
          for (std::size_t g = 0; g < kGroups; ++g) s[g][t] = first;
        }
      }
      RECUA_UNROLL
      for (std::size_t j = 0; j < 8; ++j) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const __m256i value = broadcast32(x[t].q + 32 * b + 4 * j);
          RECUA_UNROLL
          for (std::size_t g = 0; g < kGroups; ++g) {
            const __m256i product = _mm256_maddubs_epi16(load256(w.q[b][j][g]), value);
            s[g][t] = kOffset == 0 && j == 0 ? product : _mm256_add_epi16(s[g][t], product);
            pin(s[g][t]);
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          sum[g][t] = add_block(s[g][t], x[t], b, _mm256_load_ps(w.d[b][g]),
                                _mm256_load_ps(w.m[kHasMin ? b : 0][g]), sum[g][t]);
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
  [[gnu::noinline]] static void dot(const std::uint8_t* w, const std::byte* const* x_rows,
                                    std::size_t n_in, float* sums) {
    Token x[kTokens];
    __m256 sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      x[t] = token(x_rows[t], n_in, 0);
      sum[t] = _mm256_setzero_ps();
    }
    for (std::size_t b = 0; b < n_in / 32; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      prefetch<kPieceBytes>(piece + kPrefetchBytes);
      __m256i s[kTokens];
      if constexpr (kOffset != 0) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) s[t] = first_sums<kOffset>(x[t].fours + 2 * b);
      }
      RECUA_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        const Pair pair = Numbers::pair(piece, j);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          const std::int8_t* const at = x[t].q + 32 * b + 4 * j;
          const __m256i product = _mm256_maddubs_epi16(pair.low, broadcast32(at));
          s[t] = kOffset == 0 && j == 0 ? product : _mm256_add_epi16(s[t], product);
          pin(s[t]);
          s[t] = _mm256_add_epi16(s[t], _mm256_maddubs_epi16(pair.high, broadcast32(at + 16)));
          pin(s[t]);
        }
      }
      const __m256 d = Numbers::scale(piece);
      __m256 m = d;
      if constexpr (kHasMin) m = Numbers::min(piece);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) sum[t] = add_block(s[t], x[t], b, d, m, sum[t]);
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, sum[t]);
  }
};

}  // namespace recua::kernels::avx2
