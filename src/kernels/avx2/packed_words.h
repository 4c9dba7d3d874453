#pragma once
/// Products with packed types whose numbers need all eight bits. Only files built with -mavx2 -mfma
/// -mf16c include this.
///
/// Two products may be 2 * 128 * 127, so nothing can be summed in 16 bits. Weights and activations
/// are widened instead: vpmaddwd of 16 bits each is exact, and as fast as anything that was tried
/// (docs/performance.md).
///
/// Numbers has, beside kPieceBytes,
///   kBlocks                  blocks of 32 elements in a piece
///   scale(piece, b)          the scales of its block b in eight rows
///   pair(piece, b, j)        for j < 4 the vectors first(j) and second(j) of block b, as signed
///                            bytes; vector i has the elements 4 i and following
///   kNeighbours              whether those are 2 j and 2 j + 1, as they lie in memory, or j and
///                            4 + j, as the nibbles of 32 bytes

#include "kernels/avx2/packed_bytes.h"

namespace recua::kernels::avx2 {

template <class Numbers>
struct PackedWords {
  static constexpr std::size_t kBlocks = Numbers::kBlocks;
  static constexpr std::size_t kBlock = 32 * kBlocks;
  static constexpr std::size_t kPieceBytes = Numbers::kPieceBytes;
  static constexpr std::size_t kChunk = 8 / kBlocks;
  static constexpr std::size_t kFew = 4;

  static constexpr std::size_t first(std::size_t j) { return Numbers::kNeighbours ? 2 * j : j; }
  static constexpr std::size_t second(std::size_t j) {
    return Numbers::kNeighbours ? 2 * j + 1 : 4 + j;
  }

  // Of four elements of a row, 0 and 2 and then 1 and 3 become the two 16-bit halves of its lane:
  // that takes shifts only, and the activations have the same order.
  RECUA_AVX2_INLINE __m256i even(__m256i bytes) {
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
  }
  RECUA_AVX2_INLINE __m256i odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::int16_t q[8][2][8][kGroups][16];  // Even elements, then odd ones.
    alignas(64) float d[8][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    const auto store = [&](std::size_t b, std::size_t j,
                           __m256i bytes) __attribute__((always_inline)) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][0][j][g]), even(bytes));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[b][1][j][g]), odd(bytes));
    };
    for (std::size_t p = 0; p < n; ++p) {
      const std::uint8_t* const piece = w + p * kPieceBytes;
      for (std::size_t i = 0; i < kBlocks; ++i) {
        const std::size_t b = p * kBlocks + i;
        _mm256_store_ps(to.d[b][g], Numbers::scale(piece, i));
        for (std::size_t j = 0; j < 4; ++j) {
          const Pair pair = Numbers::pair(piece, i, j);
          store(b, first(j), pair.low);
          store(b, second(j), pair.high);
        }
      }
    }
  }

  // The end of every block: sum + s * d * scale, s exact.
  RECUA_AVX2_INLINE __m256 add_block(__m256i s, const float* d, __m256 scale, __m256 sum) {
    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_broadcast_ss(d));
    return _mm256_fmadd_ps(value, scale, sum);
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
      q[t] = q16_values(x[t]) + kBlock * begin;
      d[t] = q16_scales(x[t], n_in) + kBlocks * begin;
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        sum[g][t] = _mm256_load_ps(sums + t * kSumRow + 8 * g);
      }
    }
    for (std::size_t b = 0; b < kBlocks * n; ++b) {
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
      const std::uint8_t* const piece = w + b / kBlocks * kPieceBytes;
      constexpr std::size_t kBlockBytes = kPieceBytes / kBlocks;
      prefetch<kBlockBytes>(w + b * kBlockBytes + kPrefetchBytes);
      __m256i s[kTokens];
      const auto multiply = [&](std::size_t j, __m256i bytes) __attribute__((always_inline)) {
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
      };
      RECUA_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        const Pair pair = Numbers::pair(piece, b % kBlocks, j);
        multiply(first(j), pair.low);
        multiply(second(j), pair.high);
      }
      const __m256 scale = Numbers::scale(piece, b % kBlocks);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sum[t] = add_block(s[t], d[t] + b, scale, sum[t]);
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, sum[t]);
  }
};

}  // namespace recua::kernels::avx2
