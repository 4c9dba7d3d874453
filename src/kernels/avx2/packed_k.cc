// Packed Q4_K: per group of 32 elements a sum in 16 bits, which vpmaddwd then widens and multiplies
// by the group's scale at once. 16 * 15 * 127 = 30480 is the largest sum of a group; scaled and
// added up over the block, 63 * 32 * 15 * 127 * 8 = 3.1e7. The mins are vpmaddwd of two groups'
// mins with the activations' two sums (at most 4064).
#include "kernels/avx2/packed_groups.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

// Eight bytes, one per row, to both 16-bit halves of the rows' lanes.
RECUA_AVX2_INLINE __m256i twice_u16(const std::uint8_t* bytes) {
  long long eight;
  __builtin_memcpy(&eight, bytes, sizeof(eight));
  const __m256i order = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                         4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), order);
}

struct PackedQ4_K {
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = 1152;
  static constexpr std::size_t kChunk = 2;
  static constexpr std::size_t kFew = 4;

  template <std::size_t kGroups>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kGroups][32];
    alignas(64) std::int16_t scale[kChunk][8][kGroups][16];
    alignas(64) std::int16_t min[kChunk][4][kGroups][16];
    alignas(64) float d[kChunk][kGroups][8];
    alignas(64) float dmin[kChunk][kGroups][8];
  };

  template <std::size_t kGroups>
  RECUA_AVX2_INLINE void unpack(const std::uint8_t* w, std::size_t n, Unpacked<kGroups>& to,
                                std::size_t g) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      _mm256_store_ps(to.d[b][g], load8_f16(piece));
      _mm256_store_ps(to.dmin[b][g], load8_f16(piece + 16));
      alignas(32) std::uint8_t numbers[64];
      six_bits(piece + 32, numbers);
      for (std::size_t i = 0; i < 8; ++i)
        store_vector(to.scale[b][i][g], twice_u16(numbers + 8 * i));
      six_bits(piece + 80, numbers);
      for (std::size_t i = 0; i < 4; ++i)
        store_vector(to.min[b][i][g], pairs_u16(numbers + 16 * i));
      for (std::size_t v = 0; v < 32; ++v) {
        const __m256i bytes = load256(piece + 128 + 32 * v);
        const std::size_t at = v / 8 * 16 + v % 8;
        store_vector(to.q[b][at][g], low_nibbles(bytes));
        store_vector(to.q[b][at + 8][g], high_nibbles(bytes));
      }
    }
  }

  // sum + dx * (d * s - dmin * m), the integers exact.
  RECUA_AVX2_INLINE __m256 add_block(__m256i s, __m256i m, __m256 dx, __m256 d, __m256 dmin,
                                     __m256 sum) {
    sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(s), dx), d, sum);
    return _mm256_fnmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(m), dx), dmin, sum);
  }

  template <std::size_t kGroups, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kGroups>& w, const std::byte* const* x,
                                     std::size_t n_in, std::size_t begin, std::size_t n,
                                     float* sums) {
    const std::int8_t* q[kTokens];
    const float* d[kTokens];
    const std::int16_t* sums32[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) {
      q[t] = q8_values(x[t]) + 256 * begin;
      d[t] = q8_scales(x[t], n_in) + begin;
      sums32[t] = q8x256_sums32(x[t], n_in) + 8 * begin;
    }
    for (std::size_t b = 0; b < n; ++b) {
      __m256i all[kGroups][kTokens];
      RECUA_UNROLL
      for (std::size_t g = 0; g < kGroups; ++g) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) all[g][t] = _mm256_setzero_si256();
      }
      for (std::size_t i = 0; i < 8; ++i) {
        __m256i s[kGroups][kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m256i value = broadcast32(q[t] + 256 * b + 32 * i + 4 * j);
            RECUA_UNROLL
            for (std::size_t g = 0; g < kGroups; ++g) {
              const __m256i product = _mm256_maddubs_epi16(load256(w.q[b][8 * i + j][g]), value);
              s[g][t] = j == 0 ? product : _mm256_add_epi16(s[g][t], product);
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
        const __m256 dx = _mm256_broadcast_ss(d[t] + b);
        RECUA_UNROLL
        for (std::size_t g = 0; g < kGroups; ++g) {
          __m256i mins = _mm256_setzero_si256();
          RECUA_UNROLL
          for (std::size_t i = 0; i < 4; ++i) {
            const __m256i value = broadcast32(sums32[t] + 8 * b + 2 * i);
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
    for (std::size_t t = 0; t < kTokens; ++t) _mm256_store_ps(sums + 8 * t, _mm256_setzero_ps());
    for (std::size_t b = 0; b < n_in / 256; ++b) {
      const std::uint8_t* const piece = w + b * kPieceBytes;
      const std::int8_t* q[kTokens];
      __m256i all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        q[t] = q8_values(x[t]) + 256 * b;
        all[t] = _mm256_setzero_si256();
      }
      alignas(32) std::uint8_t scales[64];
      alignas(32) std::uint8_t mins[64];
      prefetch<128>(piece + kPrefetchBytes);
      six_bits(piece + 32, scales);
      six_bits(piece + 80, mins);
      for (std::size_t c = 0; c < 4; ++c) {
        const std::uint8_t* const from = piece + 128 + 256 * c;
        prefetch<256>(from + kPrefetchBytes);
        __m256i low[kTokens];
        __m256i high[kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          const __m256i bytes = load256(from + 32 * j);
          const __m256i lows = low_nibbles(bytes);
          const __m256i highs = high_nibbles(bytes);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::int8_t* const at = q[t] + 64 * c + 4 * j;
            const __m256i first = _mm256_maddubs_epi16(lows, broadcast32(at));
            const __m256i second = _mm256_maddubs_epi16(highs, broadcast32(at + 32));
            low[t] = j == 0 ? first : _mm256_add_epi16(low[t], first);
            high[t] = j == 0 ? second : _mm256_add_epi16(high[t], second);
            pin(low[t]);
            pin(high[t]);
          }
        }
        const __m256i low_scale = twice_u16(scales + 16 * c);
        const __m256i high_scale = twice_u16(scales + 16 * c + 8);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          all[t] = _mm256_add_epi32(all[t], _mm256_madd_epi16(low[t], low_scale));
          all[t] = _mm256_add_epi32(all[t], _mm256_madd_epi16(high[t], high_scale));
          pin(all[t]);
        }
      }
      const __m256 d = load8_f16(piece);
      const __m256 dmin = load8_f16(piece + 16);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        const std::int16_t* const sums32 = q8x256_sums32(x[t], n_in) + 8 * b;
        __m256i all_mins = _mm256_setzero_si256();
        RECUA_UNROLL
        for (std::size_t c = 0; c < 4; ++c) {
          const __m256i value = broadcast32(sums32 + 2 * c);
          all_mins = _mm256_add_epi32(all_mins, _mm256_madd_epi16(value, pairs_u16(mins + 16 * c)));
        }
        float* const sum = sums + 8 * t;
        _mm256_store_ps(
            sum, add_block(all[t], all_mins, _mm256_broadcast_ss(q8_scales(x[t], n_in) + b), d,
                           dmin, _mm256_load_ps(sum)));
      }
    }
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ4_K>(const MatmulArgs& args) {
  multiply_packed<PackedQ4_K>(args);
}

}  // namespace recua::kernels::avx2
