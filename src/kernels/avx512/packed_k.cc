// Packed types with blocks of 256: an exact sum per group of 32 or 16 elements, times the group's
// scale, added up over the block in 32 bits.
//
// Q4_K: a group's sum is at most 32 * 15 * 127 = 60960 and does not fit the 16 bits that vpdpwssd
// would take, so it is vpmulld. Over the block 63 * 60960 * 8 = 3.1e7. The mins are vpdpwssd of two
// groups' mins with the activations' two sums (at most 4064).
// Q6_K: with -32 times the activations' sum as the initial value a group's sum is at most 16 * 32 *
// 127 = 65024, over the block 128 * 65024 * 16 = 1.3e8.
#include "kernels/avx512/packed_driver.h"

namespace recua::kernels::avx512 {
namespace {

using quant::DataType;

// all + s * scale. g++ 12 may rewrite the additions into trees that do not fit the registers; what
// passes through the empty asm keeps its order.
RECUA_AVX512_INLINE __m512i add_scaled(__m512i all, __m512i s, __m512i scale) {
  all = _mm512_add_epi32(all, _mm512_mullo_epi32(s, scale));
  asm("" : "+v"(all));
  return all;
}

// Six-bit planes (kernels/packed.h) of two groups of rows to bytes [8 groups][16 rows].
RECUA_AVX512_INLINE void six_bits(const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* out) {
  const __m512i low = load_pair(a, b);
  const __m512i twice =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(load128(a + 32))),
                         _mm256_broadcastsi128_si256(load128(b + 32)), 1);
  const __m512i high = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 2, 2, 0, 0, 2, 2));
  const __m512i mask = _mm512_set1_epi8(0x30);
  const __m512i first =
      _mm512_or_si512(low_nibbles(low), _mm512_and_si512(_mm512_slli_epi16(high, 4), mask));
  const __m512i second = _mm512_or_si512(high_nibbles(low), _mm512_and_si512(high, mask));
  // Each has eight bytes of a for each of four groups and then those of b.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  store512(out, _mm512_permutexvar_epi64(order, first));
  store512(out + 64, _mm512_permutexvar_epi64(order, second));
}

RECUA_AVX512_INLINE __m512i lanes_u8(const std::uint8_t* bytes) {
  return _mm512_cvtepu8_epi32(load128(bytes));
}
// 16 bytes to the lower and the next 16 to the upper 16-bit halves.
RECUA_AVX512_INLINE __m512i pairs_u8(const std::uint8_t* bytes) {
  return _mm512_or_si512(lanes_u8(bytes), _mm512_slli_epi32(lanes_u8(bytes + 16), 16));
}

struct PackedQ4_K {
  using Block = ActivationBlock256;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = 1152;
  static constexpr std::size_t kChunk = 2;
  static constexpr std::size_t kFew = 8;

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kVectors][64];
    alignas(64) std::int32_t scale[kChunk][8][kVectors][16];
    alignas(64) std::int16_t min[kChunk][4][kVectors][32];
    alignas(64) float d[kChunk][kVectors][16];
    alignas(64) float dmin[kChunk][kVectors][16];
  };

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(GroupPair from, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = from.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = from.w[1] + b * kPieceBytes;
      prefetch<kPieceBytes>(first + kChunk * kPieceBytes);
      prefetch<kPieceBytes>(second + kChunk * kPieceBytes);
      _mm512_store_ps(to.d[b][v], load_pair_f16(first, second));
      _mm512_store_ps(to.dmin[b][v], load_pair_f16(first + 16, second + 16));
      alignas(64) std::uint8_t numbers[128];
      six_bits(first + 32, second + 32, numbers);
      for (std::size_t i = 0; i < 8; ++i) store512(to.scale[b][i][v], lanes_u8(numbers + 16 * i));
      six_bits(first + 80, second + 80, numbers);
      for (std::size_t i = 0; i < 4; ++i) store512(to.min[b][i][v], pairs_u8(numbers + 32 * i));
      for (std::size_t i = 0; i < 32; ++i) {
        const __m512i bytes = load_pair(first + 128 + 32 * i, second + 128 + 32 * i);
        const std::size_t at = i / 8 * 16 + i % 8;
        store512(to.q[b][at][v], low_nibbles(bytes));
        store512(to.q[b][at + 8][v], high_nibbles(bytes));
      }
    }
  }

  // sum + dx * (d * s - dmin * m), the integers exact.
  RECUA_AVX512_INLINE __m512 add_block(__m512i s, __m512i m, float dx, __m512 d, __m512 dmin,
                                       __m512 sum) {
    const __m512 scale = _mm512_set1_ps(dx);
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d, scale), sum);
    return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(m), _mm512_mul_ps(dmin, scale), sum);
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, SumRow* sums) {
    const Block* at[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) at[t] = x[t];
    for (std::size_t b = 0; b < n; ++b) {
      __m512i all[kVectors][kTokens];
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) all[v][t] = _mm512_setzero_si512();
      }
      for (std::size_t i = 0; i < 8; ++i) {
        __m512i s[kVectors][kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m512i value = broadcast32(at[t][b].q + 32 * i + 4 * j);
            RECUA_UNROLL
            for (std::size_t v = 0; v < kVectors; ++v) {
              s[v][t] = _mm512_dpbusd_epi32(j == 0 ? _mm512_setzero_si512() : s[v][t],
                                            load512(w.q[b][8 * i + j][v]), value);
            }
          }
        }
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t v = 0; v < kVectors; ++v) {
            all[v][t] = add_scaled(all[v][t], s[v][t], load512(w.scale[b][i][v]));
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          __m512i mins = _mm512_setzero_si512();
          RECUA_UNROLL
          for (std::size_t i = 0; i < 4; ++i) {
            mins = _mm512_dpwssd_epi32(mins, load512(w.min[b][i][v]),
                                       broadcast32(at[t][b].sums32 + 2 * i));
          }
          float* const sum = sums[t] + 16 * v;
          _mm512_store_ps(sum, add_block(all[v][t], mins, at[t][b].d, _mm512_load_ps(w.d[b][v]),
                                         _mm512_load_ps(w.dmin[b][v]), _mm512_load_ps(sum)));
        }
      }
    }
  }

  template <std::size_t kTokens>
  RECUA_AVX512_INLINE void dot(GroupPair w, const Block* const* x, std::size_t n, __m512* sums) {
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sums[t] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = w.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = w.w[1] + b * kPieceBytes;
      __m512i all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) all[t] = _mm512_setzero_si512();
      alignas(64) std::uint8_t scales[128];
      alignas(64) std::uint8_t mins[128];
      prefetch<128>(first + kPrefetchBytes);
      prefetch<128>(second + kPrefetchBytes);
      six_bits(first + 32, second + 32, scales);
      six_bits(first + 80, second + 80, mins);
      for (std::size_t c = 0; c < 4; ++c) {
        const std::uint8_t* const from = first + 128 + 256 * c;
        const std::uint8_t* const second_from = second + 128 + 256 * c;
        prefetch<256>(from + kPrefetchBytes);
        prefetch<256>(second_from + kPrefetchBytes);
        __m512i low[kTokens];
        __m512i high[kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          const __m512i bytes = load_pair(from + 32 * j, second_from + 32 * j);
          const __m512i lows = low_nibbles(bytes);
          const __m512i highs = high_nibbles(bytes);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::int8_t* const q = x[t][b].q + 64 * c + 4 * j;
            low[t] =
                _mm512_dpbusd_epi32(j == 0 ? _mm512_setzero_si512() : low[t], lows, broadcast32(q));
            high[t] = _mm512_dpbusd_epi32(j == 0 ? _mm512_setzero_si512() : high[t], highs,
                                          broadcast32(q + 32));
          }
        }
        const __m512i low_scale = lanes_u8(scales + 32 * c);
        const __m512i high_scale = lanes_u8(scales + 32 * c + 16);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          all[t] = add_scaled(all[t], low[t], low_scale);
          all[t] = add_scaled(all[t], high[t], high_scale);
        }
      }
      const __m512 d = load_pair_f16(first, second);
      const __m512 dmin = load_pair_f16(first + 16, second + 16);
      __m512i all_mins[kTokens];
      RECUA_UNROLL
      for (std::size_t c = 0; c < 4; ++c) {
        const __m512i pairs = pairs_u8(mins + 32 * c);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          all_mins[t] = _mm512_dpwssd_epi32(c == 0 ? _mm512_setzero_si512() : all_mins[t], pairs,
                                            broadcast32(x[t][b].sums32 + 2 * c));
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[t] = add_block(all[t], all_mins[t], x[t][b].d, d, dmin, sums[t]);
      }
    }
  }
};

struct PackedQ6_K {
  using Block = ActivationBlock256;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = 1680;
  static constexpr std::size_t kChunk = 2;
  static constexpr std::size_t kFew = 4;  // Four groups' sums each.

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kVectors][64];
    alignas(64) std::int32_t scale[kChunk][16][kVectors][16];
    alignas(64) float d[kChunk][kVectors][16];
  };

  // Elements 32 j + 4 v and following of a half of the block (128 elements).
  struct Quarters {
    __m512i q[4];  // j
  };
  RECUA_AVX512_INLINE Quarters quarters(const std::uint8_t* a, const std::uint8_t* b,
                                        std::size_t half, std::size_t v) {
    const std::size_t at = 144 + 96 * (8 * half + v);
    const __m512i first = load_pair(a + at, b + at);
    const __m512i second = load_pair(a + at + 32, b + at + 32);
    const __m512i high = load_pair(a + at + 64, b + at + 64);
    const __m512i mask = _mm512_set1_epi8(0x30);
    const auto with = [&](__m512i low, __m512i moved) __attribute__((always_inline)) {
      return _mm512_or_si512(low, _mm512_and_si512(moved, mask));
    };
    return {{with(low_nibbles(first), _mm512_slli_epi16(high, 4)),
             with(low_nibbles(second), _mm512_slli_epi16(high, 2)), with(high_nibbles(first), high),
             with(high_nibbles(second), _mm512_srli_epi16(high, 2))}};
  }
  RECUA_AVX512_INLINE __m512i scale_of(const std::uint8_t* a, const std::uint8_t* b,
                                       std::size_t group) {
    return _mm512_cvtepi8_epi32(load_pair64(a + 16 + 8 * group, b + 16 + 8 * group));
  }

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(GroupPair from, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = from.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = from.w[1] + b * kPieceBytes;
      prefetch<kPieceBytes>(first + kChunk * kPieceBytes);
      prefetch<kPieceBytes>(second + kChunk * kPieceBytes);
      _mm512_store_ps(to.d[b][v], load_pair_f16(first, second));
      for (std::size_t i = 0; i < 16; ++i) store512(to.scale[b][i][v], scale_of(first, second, i));
      for (std::size_t i = 0; i < 16; ++i) {
        const Quarters four = quarters(first, second, i / 8, i % 8);
        for (std::size_t j = 0; j < 4; ++j) {
          store512(to.q[b][i / 8 * 32 + 8 * j + i % 8][v], four.q[j]);
        }
      }
    }
  }

  RECUA_AVX512_INLINE __m512 add_block(__m512i s, float dx, __m512 d, __m512 sum) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d, _mm512_set1_ps(dx)), sum);
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, SumRow* sums) {
    const Block* at[kTokens];
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) at[t] = x[t];
    for (std::size_t b = 0; b < n; ++b) {
      __m512i all[kVectors][kTokens];
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) all[v][t] = _mm512_setzero_si512();
      }
      for (std::size_t i = 0; i < 16; ++i) {
        __m512i s[kVectors][kTokens];
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t v = 0; v < kVectors; ++v) {
            s[v][t] = _mm512_set1_epi32(at[t][b].offsets[i]);
          }
        }
        RECUA_UNROLL
        for (std::size_t j = 0; j < 4; ++j) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m512i value = broadcast32(at[t][b].q + 16 * i + 4 * j);
            RECUA_UNROLL
            for (std::size_t v = 0; v < kVectors; ++v) {
              s[v][t] = _mm512_dpbusd_epi32(s[v][t], load512(w.q[b][4 * i + j][v]), value);
            }
          }
        }
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t v = 0; v < kVectors; ++v) {
            all[v][t] = add_scaled(all[v][t], s[v][t], load512(w.scale[b][i][v]));
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          float* const sum = sums[t] + 16 * v;
          _mm512_store_ps(sum, add_block(all[v][t], at[t][b].d, _mm512_load_ps(w.d[b][v]),
                                         _mm512_load_ps(sum)));
        }
      }
    }
  }

  template <std::size_t kTokens>
  RECUA_AVX512_INLINE void dot(GroupPair w, const Block* const* x, std::size_t n, __m512* sums) {
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sums[t] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < n; ++b) {
      const std::uint8_t* const first = w.w[0] + b * kPieceBytes;
      const std::uint8_t* const second = w.w[1] + b * kPieceBytes;
      __m512i all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) all[t] = _mm512_setzero_si512();
      for (std::size_t quarter = 0; quarter < 4; ++quarter) {
        const std::size_t half = quarter / 2;
        const std::size_t i = quarter % 2;  // Groups i, 2 + i, 4 + i and 6 + i of the half.
        const std::size_t ahead = quarter * (kPieceBytes / 4) + kPrefetchBytes;
        prefetch<kPieceBytes / 4>(first + ahead);
        prefetch<kPieceBytes / 4>(second + ahead);
        __m512i s[4][kTokens];
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t j = 0; j < 4; ++j) {
            s[j][t] = _mm512_set1_epi32(x[t][b].offsets[8 * half + i + 2 * j]);
          }
        }
        RECUA_UNROLL
        for (std::size_t v = 0; v < 4; ++v) {
          const Quarters four = quarters(first, second, half, 4 * i + v);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::int8_t* const q = x[t][b].q + 128 * half + 16 * i + 4 * v;
            RECUA_UNROLL
            for (std::size_t j = 0; j < 4; ++j) {
              s[j][t] = _mm512_dpbusd_epi32(s[j][t], four.q[j], broadcast32(q + 32 * j));
            }
          }
        }
        RECUA_UNROLL
        for (std::size_t j = 0; j < 4; ++j) {
          const __m512i scale = scale_of(first, second, 8 * half + 2 * j + i);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            all[t] = add_scaled(all[t], s[j][t], scale);
          }
        }
      }
      const __m512 d = load_pair_f16(first, second);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[t] = add_block(all[t], x[t][b].d, d, sums[t]);
      }
    }
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ4_K>(const MatmulArgs& args) {
  multiply_packed<PackedQ4_K>(args);
}
template <>
void packed_matmul<DataType::kQ6_K>(const MatmulArgs& args) {
  multiply_packed<PackedQ6_K>(args);
}

}  // namespace recua::kernels::avx512
