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
template <class L>
RECUA_AVX512_INLINE typename L::Ints add_scaled(typename L::Ints all, typename L::Ints s,
                                                typename L::Ints scale) {
  all = L::add(all, L::multiply(s, scale));
  asm("" : "+v"(all));
  return all;
}

// A byte per row to the lower and the next ones to the upper 16-bit halves.
template <class Groups>
RECUA_AVX512_INLINE typename Groups::Ints pairs(const std::uint8_t* bytes) {
  return Groups::unsigned_bytes(bytes) | (Groups::unsigned_bytes(bytes + Groups::kRows) << 16);
}

struct PackedQ4_K {
  using Block = ActivationBlock256;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = 1152;
  static constexpr std::size_t kChunk = 2;
  static constexpr std::size_t kFew = 8;
  static constexpr std::size_t kWideFrom = 4;

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kVectors][64];
    alignas(64) std::int32_t scale[kChunk][8][kVectors][16];
    alignas(64) std::int16_t min[kChunk][4][kVectors][32];
    alignas(64) float d[kChunk][kVectors][16];
    alignas(64) float dmin[kChunk][kVectors][16];
  };

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(TwoGroups w, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const TwoGroups piece = w.from(b * kPieceBytes);
      _mm512_store_ps(to.d[b][v], piece.halves(0));
      _mm512_store_ps(to.dmin[b][v], piece.halves(16));
      alignas(64) std::uint8_t numbers[128];
      piece.six_bits(32, numbers);
      for (std::size_t i = 0; i < 8; ++i) {
        store512(to.scale[b][i][v], TwoGroups::unsigned_bytes(numbers + 16 * i));
      }
      piece.six_bits(80, numbers);
      for (std::size_t i = 0; i < 4; ++i) {
        store512(to.min[b][i][v], pairs<TwoGroups>(numbers + 32 * i));
      }
      for (std::size_t i = 0; i < 32; ++i) {
        const __m512i bytes = piece.dwords(128 + 32 * i);
        const std::size_t at = i / 8 * 16 + i % 8;
        store512(to.q[b][at][v], bytes & TwoGroups::bytes(15));
        store512(to.q[b][at + 8][v], (bytes >> 4) & TwoGroups::bytes(15));
      }
    }
  }

  // sum + dx * (d * s - dmin * m), the integers exact.
  template <class L>
  RECUA_AVX512_INLINE typename L::Floats add_block(typename L::Ints s, typename L::Ints m, float dx,
                                                   typename L::Floats d, typename L::Floats dmin,
                                                   typename L::Floats sum) {
    const auto scale = L::floats(dx);
    sum = L::fma(L::to_floats(s), L::multiply(d, scale), sum);
    return L::fnma(L::to_floats(m), L::multiply(dmin, scale), sum);
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, Ahead<kVectors>& ahead, SumRow* sums) {
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
        ahead.template step<1>();
        __m512i s[kVectors][kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const __m512i value = Lanes16::ints(four_bytes(at[t][b].q + 32 * i + 4 * j));
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
            all[v][t] = add_scaled<Lanes16>(all[v][t], s[v][t], load512(w.scale[b][i][v]));
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
                                       Lanes16::ints(four_bytes(at[t][b].sums32 + 2 * i)));
          }
          float* const sum = sums[t] + 16 * v;
          _mm512_store_ps(sum,
                          add_block<Lanes16>(all[v][t], mins, at[t][b].d, _mm512_load_ps(w.d[b][v]),
                                             _mm512_load_ps(w.dmin[b][v]), _mm512_load_ps(sum)));
        }
      }
    }
  }

  template <std::size_t kTokens, class Groups>
  RECUA_AVX512_INLINE void dot(Groups w, const Block* const* x, std::size_t n, std::size_t jump,
                               typename Groups::Floats* sums) {
    using Ints = typename Groups::Ints;
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sums[t] = Groups::floats(0.0F);
    for (std::size_t b = 0; b < n; ++b) {
      const Groups piece = w.from(b * kPieceBytes);
      Ints all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) all[t] = Groups::ints(0);
      alignas(64) std::uint8_t scales[8 * Groups::kRows];
      alignas(64) std::uint8_t mins[8 * Groups::kRows];
      const std::size_t ahead = bytes_ahead(b * kPieceBytes, n * kPieceBytes, jump);
      piece.template prefetch<128>(ahead);
      piece.six_bits(32, scales);
      piece.six_bits(80, mins);
      for (std::size_t c = 0; c < 4; ++c) {
        const Groups quarter = piece.from(128 + 256 * c);
        quarter.template prefetch<256>(ahead);
        Ints low[kTokens];
        Ints high[kTokens];
        RECUA_UNROLL
        for (std::size_t j = 0; j < 8; ++j) {
          const Ints bytes = quarter.dwords(32 * j);
          const Ints lows = bytes & Groups::bytes(15);
          const Ints highs = (bytes >> 4) & Groups::bytes(15);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::int8_t* const q = x[t][b].q + 64 * c + 4 * j;
            low[t] = Groups::add_products(j == 0 ? Groups::ints(0) : low[t], lows,
                                          Groups::ints(four_bytes(q)));
            high[t] = Groups::add_products(j == 0 ? Groups::ints(0) : high[t], highs,
                                           Groups::ints(four_bytes(q + 32)));
          }
        }
        const std::uint8_t* const two = scales + 2 * Groups::kRows * c;
        const Ints low_scale = Groups::unsigned_bytes(two);
        const Ints high_scale = Groups::unsigned_bytes(two + Groups::kRows);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          all[t] = add_scaled<Groups>(all[t], low[t], low_scale);
          all[t] = add_scaled<Groups>(all[t], high[t], high_scale);
        }
      }
      Ints all_mins[kTokens];
      RECUA_UNROLL
      for (std::size_t c = 0; c < 4; ++c) {
        const Ints two = pairs<Groups>(mins + 2 * Groups::kRows * c);
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          all_mins[t] = Groups::add_pairs(c == 0 ? Groups::ints(0) : all_mins[t], two,
                                          Groups::ints(four_bytes(x[t][b].sums32 + 2 * c)));
        }
      }
      const auto d = piece.halves(0);
      const auto dmin = piece.halves(16);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[t] = add_block<Groups>(all[t], all_mins[t], x[t][b].d, d, dmin, sums[t]);
      }
    }
  }
};

struct PackedQ6_K {
  using Block = ActivationBlock256;
  static constexpr std::size_t kBlock = 256;
  static constexpr std::size_t kPieceBytes = 1680;
  static constexpr std::size_t kChunk = 1;
  static constexpr std::size_t kFew = 4;  // Four groups' sums each.
  static constexpr std::size_t kWideFrom = 5;

  template <std::size_t kVectors>
  struct Unpacked {
    alignas(64) std::uint8_t q[kChunk][64][kVectors][64];
    alignas(64) std::int32_t scale[kChunk][16][kVectors][16];
    alignas(64) float d[kChunk][kVectors][16];
  };

  // Elements 32 j + 4 v and following of a half of the block (128 elements).
  template <class Groups>
  struct Quarters {
    typename Groups::Ints q[4];  // j
  };
  template <class Groups>
  RECUA_AVX512_INLINE Quarters<Groups> quarters(const Groups& piece, std::size_t half,
                                                std::size_t v) {
    const Groups unit = piece.from(144 + 96 * (8 * half + v));
    const auto first = unit.dwords(0);
    const auto second = unit.dwords(32);
    const auto high = unit.dwords(64);
    const auto nibble = Groups::bytes(15);
    const auto mask = Groups::bytes(0x30);
    return {{(first & nibble) | ((high << 4) & mask), (second & nibble) | ((high << 2) & mask),
             ((first >> 4) & nibble) | (high & mask),
             ((second >> 4) & nibble) | ((high >> 2) & mask)}};
  }

  template <std::size_t kVectors>
  RECUA_AVX512_INLINE void unpack(TwoGroups w, std::size_t n, Unpacked<kVectors>& to,
                                  std::size_t v) {
    for (std::size_t b = 0; b < n; ++b) {
      const TwoGroups piece = w.from(b * kPieceBytes);
      _mm512_store_ps(to.d[b][v], piece.halves(0));
      for (std::size_t i = 0; i < 16; ++i) {
        store512(to.scale[b][i][v], piece.signed_bytes(16 + 8 * i));
      }
      for (std::size_t i = 0; i < 16; ++i) {
        const auto four = quarters(piece, i / 8, i % 8);
        for (std::size_t j = 0; j < 4; ++j) {
          store512(to.q[b][i / 8 * 32 + 8 * j + i % 8][v], four.q[j]);
        }
      }
    }
  }

  template <std::size_t kVectors, std::size_t kTokens>
  [[gnu::noinline]] static void tile(const Unpacked<kVectors>& w, const Block* const* x,
                                     std::size_t n, Ahead<kVectors>& ahead, SumRow* sums) {
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
        ahead.template step<1>();
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
            const __m512i value = Lanes16::ints(four_bytes(at[t][b].q + 16 * i + 4 * j));
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
            all[v][t] = add_scaled<Lanes16>(all[v][t], s[v][t], load512(w.scale[b][i][v]));
          }
        }
      }
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        RECUA_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          float* const sum = sums[t] + 16 * v;
          _mm512_store_ps(sum, add_block<Lanes16>(all[v][t], at[t][b].d, _mm512_load_ps(w.d[b][v]),
                                                  _mm512_load_ps(sum)));
        }
      }
    }
  }

  template <std::size_t kTokens, class Groups>
  RECUA_AVX512_INLINE void dot(Groups w, const Block* const* x, std::size_t n, std::size_t jump,
                               typename Groups::Floats* sums) {
    using Ints = typename Groups::Ints;
    RECUA_UNROLL
    for (std::size_t t = 0; t < kTokens; ++t) sums[t] = Groups::floats(0.0F);
    for (std::size_t b = 0; b < n; ++b) {
      const Groups piece = w.from(b * kPieceBytes);
      Ints all[kTokens];
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) all[t] = Groups::ints(0);
      const std::size_t ahead = bytes_ahead(b * kPieceBytes, n * kPieceBytes, jump);
      for (std::size_t quarter = 0; quarter < 4; ++quarter) {
        const std::size_t half = quarter / 2;
        const std::size_t i = quarter % 2;  // Groups i, 2 + i, 4 + i and 6 + i of the half.
        piece.template prefetch<kPieceBytes / 4>(quarter * (kPieceBytes / 4) + ahead);
        Ints s[4][kTokens];
        RECUA_UNROLL
        for (std::size_t t = 0; t < kTokens; ++t) {
          RECUA_UNROLL
          for (std::size_t j = 0; j < 4; ++j) {
            s[j][t] = Groups::ints(x[t][b].offsets[8 * half + i + 2 * j]);
          }
        }
        RECUA_UNROLL
        for (std::size_t v = 0; v < 4; ++v) {
          const auto four = quarters(piece, half, 4 * i + v);
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::int8_t* const q = x[t][b].q + 128 * half + 16 * i + 4 * v;
            RECUA_UNROLL
            for (std::size_t j = 0; j < 4; ++j) {
              s[j][t] =
                  Groups::add_products(s[j][t], four.q[j], Groups::ints(four_bytes(q + 32 * j)));
            }
          }
        }
        RECUA_UNROLL
        for (std::size_t j = 0; j < 4; ++j) {
          const Ints scale = piece.signed_bytes(16 + 8 * (8 * half + 2 * j + i));
          RECUA_UNROLL
          for (std::size_t t = 0; t < kTokens; ++t) {
            all[t] = add_scaled<Groups>(all[t], s[j][t], scale);
          }
        }
      }
      const auto d = piece.halves(0);
      RECUA_UNROLL
      for (std::size_t t = 0; t < kTokens; ++t) {
        sums[t] = add_block<Groups>(all[t], x[t][b].d, d, sums[t]);
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
