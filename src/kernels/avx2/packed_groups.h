#pragma once
/// Products with packed types of blocks of 256 in groups of 16. Only files built with -mavx2 -mfma
/// -mf16c include this.
///
/// Eight products per 16-bit sum, which vpmaddwd widens and multiplies by the group's scale at
/// once: at most 8 * 31 * 127 = 31496 for numbers of five bits as they are. Of Q6_K 8 * 63 * 127
/// would not fit, but vpaddw wraps and only the last value counts: with -32 times the activations'
/// sum as the initial value it is 8 * 32 * 127 = 32512 at most. (Hence no -128 among them.)
///
/// Numbers has, beside kPieceBytes,
///   kHasOffset, kOffset         first_sums are offsets (kernels/activation.h) * kOffset / 32
///   kMinPairs                   0: no mins; 4: of groups of 32; 8: of groups of 16
///   Scales                      what scale() and min_pair() need of a piece
///   scales(piece, Scales&)
///   scale(Scales, g)            the scale of group g in both 16-bit halves of the rows' lanes
///   min_pair(Scales, i)         mins that go with the i-th two of the activations' sums
///   quarters(piece, half, v)    elements 128 half + 32 j + 4 v and following for j < 4
///   scale(piece), min(piece)    d and dmin of eight rows

#include "kernels/avx2/packed_bytes.h"

namespace recua::kernels::avx2 {

RECUA_AVX2_INLINE void store_vector(void* p, __m256i value) {
  _mm256_store_si256(static_cast<__m256i*>(p), value);
}

struct FourVectors {
  __m256i q[4];
};

/// Eight signed bytes, one per row, to both 16-bit halves of the rows' lanes.
RECUA_AVX2_INLINE __m256i twice_i16(const std::uint8_t* bytes) {
  long long eight;
  __builtin_memcpy(&eight, bytes, sizeof(eight));
  const __m256i order = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,  //
                                         4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
  return _mm256_srai_epi16(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), order), 8);
}
/// Twice eight unsigned bytes to the lower and the upper 16-bit halves.
RECUA_AVX2_INLINE __m256i pairs_u16(const std::uint8_t* bytes) {
  const __m256i order =
      _mm256_setr_epi8(0, -1, 8, -1, 1, -1, 9, -1, 2, -1, 10, -1, 3, -1, 11, -1,  //
                       4, -1, 12, -1, 5, -1, 13, -1, 6, -1, 14, -1, 7, -1, 15, -1);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(bytes)), order);
}
/// Six-bit planes (kernels/packed.h) to bytes [8 groups][8 rows].
RECUA_AVX2_INLINE void six_bits(const std::uint8_t* planes, std::uint8_t* out) {
  const __m256i low = load256(planes);
  const __m256i high = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(load128(planes + 32)),
                                         _mm256_setr_epi64x(0, 0, 2, 2));
  const __m256i mask = _mm256_set1_epi8(0x30);
  store_vector(
      out, _mm256_or_si256(low_nibbles(low), _mm256_and_si256(_mm256_slli_epi16(high, 4), mask)));
  store_vector(out + 32, _mm256_or_si256(high_nibbles(low), _mm256_and_si256(high, mask)));
}

template <class Numbers>
struct PackedGroups {
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = Numbers::kPieceBytes;
  static constexpr std::size_t kChunk = 2;
  static constexpr std::size_t kFew = 2;  // Four groups' sums each.
  static constexpr std::size_t kMinPairs = Numbers::kMinPairs;
  using Scales = typename Numbers::Scales;

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kGroups][32];
    alignas(64) std::int16_t scale[kChunk][16][kGroups][16];
    alignas(64) std::int16_t min[kChunk][kMinPairs + 1][kGroups][16];
    alignas(64) float d[kChunk][kGroups][8];
    alignas(64) float dmin[kChunk][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      Scales scales;
      Numbers::scales(piece, scales);
      _mm256_store_ps(to.d[b][g], Numbers::scale(piece));
      if constexpr (kMinPairs != 0) _mm256_store_ps(to.dmin[b][g], Numbers::min(piece));
      for (std::size_t i = 0; i < 16; ++i) {
        store_vector(to.scale[b][i][g], Numbers::scale(scales, i));
      }
      if constexpr (kMinPairs != 0) {
        for (std::size_t i = 0; i < kMinPairs; ++i) {
          store_vector(to.min[b][i][g], Numbers::min_pair(scales, i));
        }
      }
      for (std::size_t i = 0; i < 16; ++i) {
        const FourVectors four = Numbers::quarters(piece, i / 8, i % 8);
        for (std::size_t j = 0; j < 4; ++j) {
          store_vector(to.q[b][i / 8 * 32 + 8 * j + i % 8][g], four.q[j]);
        }
      }
    }
  }

  // Where the sums of group g begin.
  RECUA_AVX2_INLINE __m256i first_sums_of(const std::int16_t* offsets, std::size_t g) {
    const __m256i value = broadcast32(offsets + 2 * g);  // Multiples of 32.
    return Numbers::kOffset == 32 ? value : _mm256_srai_epi16(value, Numbers::kOffset == 4 ? 3 : 0);
  }
  // The activations' sums that min_pair() goes with.
  RECUA_AVX2_INLINE const std::int16_t* sums_of(const std::byte* x, std::size_t n_in,
                                                std::size_t b) {
    return kMinPairs == 4 ? q8x256_sums32(x, n_in) + 8 * b : q8x256_sums(x, n_in) + 16 * b;
  }
  // sum + dx * (d * s - dmin * m), the integers exact.
  RECUA_AVX2_INLINE __m256 add_block(__m256i s, __m256i m, const float* dx, __m256 d, __m256 dmin,
                                     __m256 sum) {
    const __m256 factor = _mm256_broadcast_ss(dx);
    sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(s), factor), d, sum);
    if constexpr (kMinPairs == 0) return sum;
    return _mm256_fnmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(m), factor), dmin, sum);
  }

  template <std::size_t kGroups, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kGroups>& w, const std::byte* const* x,
                                     std::size_t n_in, std::size_t begin, std::size_t n,
                                     float* sums) {
    const std::int8_t* q[kTokens];
    const std::int16_t* offsets[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q8_values(x[t]) + 256 * begin;
      offsets[t] = q8x256_offsets(x[t], n_in) + 32 * begin;
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m256i all[kGroups][kTokens];
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) all[g][t] = _mm256_setzero_si256();
      }
      for (std::size_t i = 0; i < 16; ++i) {
        __m256i s[kGroups][kTokens];
        if constexpr (Numbers::kOffset != 0) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m256i first = first_sums_of(offsets[t] + 32 * b, i);
            RECUA_UNROLL
            for (std::size_t g = 0; g < kGroups; ++g) s[g][t] = first;
          }
        }
        RECUA_UNROLL
        for (std::size_t j = 0; j < 4; ++j) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m256i value = broadcast32(q[t] + 256 * b + 16 * i + 4 * j);
            RECUA_UNROLL
            for (std::size_t g = 0; g < kGroups; ++g) {
              const __m256i product = _mm256_maddubs_epi16(load256(w.q[b][4 * i + j][g]), value);
              s[g][t] =
                  Numbers::kOffset == 0 && j == 0 ? product : _mm256_add_epi16(s[g][t], product);
              pin(s[g][t]);
            }
          }
        }
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t g = 0; g < kGroups; ++g) {
            const __m256i scaled = _mm256_madd_epi16(s[g][t], load256(w.scale[b][i][g]));
            all[g][t] = _mm256_add_epi32(all[g][t], scaled);
            pin(all[g][t]);
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const float* const dx = q8_scales(x[t], n_in) + begin + b;
        const std::int16_t* const token_sums = sums_of(x[t], n_in, begin + b);
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          __m256i mins = _mm256_setzero_si256();
          RECUA_UNROLL
          for (std::size_t i = 0; i < kMinPairs; ++i) {
            const __m256i value = broadcast32(token_sums + 2 * i);
            mins = _mm256_add_epi32(mins, _mm256_madd_epi16(value, load256(w.min[b][i][g])));
          }
          float* const sum = sums + t * kSumRow + 8 * g;
          _mm256_store_ps(sum, add_block(all[g][t], mins, dx, _mm256_load_ps(w.d[b][g]),
                                         _mm256_load_ps(w.dmin[b][g]), _mm256_load_ps(sum)));
        }
      }
    }
  }

  template <std::size_t kTokens>
  [[gnu::noinline]] static void dot(const std::uint8_t* w, const std::byte* const* x,
                                    std::size_t n_in, float* sums) {
    __m256 sum[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sum[t] = _mm256_setzero_ps();
    for (std::size_t b = 0; b < n_in / 256; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      Scales scales;
      Numbers::scales(piece, scales);
      __m256i all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) all[t] = _mm256_setzero_si256();
      for (std::size_t half = 0; half < 2; ++half) {
        for (std::size_t i = 0; i < 2; ++i) {  // Groups i, 2 + i, 4 + i and 6 + i of the half.
          const std::size_t quarter = 2 * half + i;
          prefetch<kPieceBytes / 4>(piece + quarter * (kPieceBytes / 4) + kPrefetchBytes);
          __m256i s[4][kTokens];
          if constexpr (Numbers::kOffset != 0) {
            RECUA_UNROLL
            for (std::size_t t = 0; t < kTokens; ++t) {
              const std::int16_t* const offsets = q8x256_offsets(x[t], n_in) + 32 * b;
              RECUA_UNROLL
              for (std::size_t j = 0; j < 4; ++j) {
                s[j][t] = first_sums_of(offsets, 8 * half + i + 2 * j);
              }
            }
          }
          RECUA_UNROLL
          for (std::size_t v = 0; v < 4; ++v) {
            const FourVectors four = Numbers::quarters(piece, half, 4 * i + v);
            RECUA_UNROLL
            for (std::size_t t = 0; t < kTokens; ++t) {
              const std::int8_t* const q = q8_values(x[t]) + 256 * b + 128 * half + 16 * i + 4 * v;
              RECUA_UNROLL
              for (std::size_t j = 0; j < 4; ++j) {
                const __m256i product = _mm256_maddubs_epi16(four.q[j], broadcast32(q + 32 * j));
                s[j][t] =
                    Numbers::kOffset == 0 && v == 0 ? product : _mm256_add_epi16(s[j][t], product);
                pin(s[j][t]);
              }
            }
          }
          RECUA_UNROLL
          for (std::size_t j = 0; j < 4; ++j) {
            const __m256i scale = Numbers::scale(scales, 8 * half + 2 * j + i);
            RECUA_UNROLL
            for (std::size_t t = 0; t < kTokens; ++t) {
              all[t] = _mm256_add_epi32(all[t], _mm256_madd_epi16(s[j][t], scale));
              pin(all[t]);
            }
          }
        }
      }
      const __m256 d = Numbers::scale(piece);
      __m256 dmin = d;
      if constexpr (kMinPairs != 0) dmin = Numbers::min(piece);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const std::int16_t* const token_sums = sums_of(x[t], n_in, b);
        __m256i mins = _mm256_setzero_si256();
        if constexpr (kMinPairs != 0) {
          RECUA_UNROLL
          for (std::size_t i = 0; i < kMinPairs; ++i) {
            const __m256i value = broadcast32(token_sums + 2 * i);
            mins = _mm256_add_epi32(mins, _mm256_madd_epi16(value, Numbers::min_pair(scales, i)));
          }
        }
        sum[t] = add_block(all[t], mins, q8_scales(x[t], n_in) + b, d, dmin, sum[t]);
      }
    }
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, sum[t]);
  }
};

}  // namespace recua::kernels::avx2
