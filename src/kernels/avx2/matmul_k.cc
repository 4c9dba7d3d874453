// Types with blocks of 256. Each gives, per block, 8 vectors of 32 unsigned bytes q and 16 scales
// and mins of 16 elements each, and then all are the same:
//
//   d * (sum of scale * q * x) - dmin * (sum of min * x)
//
// in exact integers up to the last step. vpmaddubsw adds pairs in 16 bits (2 * 63 * 127 = 16002
// fits), vpmaddwd applies the scale and widens; the int32 lanes stay below 2.6e8. The sums of 16
// activations come with them, so the mins are one vpmaddwd per block. Where value = d * scale *
// (q - 2^k), the min is 2^k * scale and is taken off in integers. IQ4_XS has signed numbers
// instead: |q| meets x with the sign of q (2 * 127 * 127 = 32258).
#include "kernels/activation.h"
#include "kernels/avx2/common.h"
#include "kernels/matmul.h"
#include "quant/blocks.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

// The scales and mins of groups 0 2 .. 14 in the low half, 1 3 .. 15 in the high half, as i16; so
// the two that belong to vector i are lane i of each half.
struct Scales {
  __m256i scale;
  __m256i min;
};

RECUA_AVX2_INLINE __m128i even_then_odd(__m128i bytes) {
  return _mm_shuffle_epi8(bytes,
                          _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

RECUA_AVX2_INLINE __m128i four_u32(std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                   std::uint32_t d) {
  return _mm_setr_epi32(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c),
                        static_cast<int>(d));
}

// The packed 6-bit scales and mins of Q4_K and Q5_K (quant/blocks.h), four at a time in a u32. A
// group there has 32 elements, so both halves are alike.
RECUA_AVX2_INLINE Scales scales_of_32(const std::uint8_t* s) {
  const std::uint32_t a = load_u32(s);
  const std::uint32_t b = load_u32(s + 4);
  const std::uint32_t c = load_u32(s + 8);
  const std::uint32_t scale_high = (c & 0x0f0f0f0fU) | ((a >> 2U) & 0x30303030U);
  const std::uint32_t min_high = ((c >> 4U) & 0x0f0f0f0fU) | ((b >> 2U) & 0x30303030U);
  const __m256i all =
      _mm256_cvtepu8_epi16(four_u32(a & 0x3f3f3f3fU, scale_high, b & 0x3f3f3f3fU, min_high));
  return {_mm256_permute4x64_epi64(all, 0x44), _mm256_permute4x64_epi64(all, 0xee)};
}

// Two bits per element of vector kI, as in Q2_K.
template <int kI>
RECUA_AVX2_INLINE __m256i two_bits(const std::uint8_t* qs) {
  const __m256i bytes = load256(qs + 32 * (kI / 4));
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * (kI % 4)), _mm256_set1_epi8(3));
}

// Four bits per element of vector kI, as in Q4_K.
template <int kI>
RECUA_AVX2_INLINE __m256i nibbles(const std::uint8_t* qs) {
  const __m256i bytes = load256(qs + 32 * (kI / 2));
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 4 * (kI % 2)), _mm256_set1_epi8(15));
}

// Bit kI of each of 32 bytes, as the number 2^kTo.
template <int kI, int kTo>
RECUA_AVX2_INLINE __m256i one_bit(const std::uint8_t* bits) {
  const __m256i bytes = load256(bits);
  const __m256i moved =
      kI >= kTo ? _mm256_srli_epi16(bytes, kI - kTo) : _mm256_slli_epi16(bytes, kTo - kI);
  return _mm256_and_si256(moved, _mm256_set1_epi8(1 << kTo));
}

// kD, kDmin: where the F16 scales lie. kOffsetBits: k of 2^k above; -1 when the type has mins (and
// so a kDmin).
template <DataType kType>
struct Format;
template <>
struct Format<DataType::kQ2_K> {
  static constexpr std::size_t kBytes = 84;
  static constexpr std::size_t kD = 80;
  static constexpr std::size_t kDmin = 82;
  static constexpr int kOffsetBits = -1;
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) {
    const __m128i bytes = even_then_odd(load128(block));
    const __m128i low = _mm_set1_epi8(15);
    return {_mm256_cvtepu8_epi16(_mm_and_si128(bytes, low)),
            _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(bytes, 4), low))};
  }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    return two_bits<kI>(block + 16);
  }
};
template <>
struct Format<DataType::kQ3_K> {
  static constexpr std::size_t kBytes = 110;
  static constexpr std::size_t kD = 108;
  static constexpr int kOffsetBits = 2;
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) {
    const std::uint32_t a = load_u32(block + 96);
    const std::uint32_t b = load_u32(block + 100);
    const std::uint32_t c = load_u32(block + 104);
    constexpr std::uint32_t kLow = 0x0f0f0f0fU;
    constexpr std::uint32_t kHigh = 0x30303030U;
    const __m128i packed =
        four_u32((a & kLow) | ((c << 4U) & kHigh), (b & kLow) | ((c << 2U) & kHigh),
                 ((a >> 4U) & kLow) | (c & kHigh), ((b >> 4U) & kLow) | ((c >> 2U) & kHigh));
    const __m256i scale =
        _mm256_cvtepi8_epi16(_mm_sub_epi8(even_then_odd(packed), _mm_set1_epi8(32)));
    return {scale, scale};
  }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    return _mm256_or_si256(two_bits<kI>(block + 32), one_bit<kI, 2>(block));
  }
};
template <>
struct Format<DataType::kQ4_K> {
  static constexpr std::size_t kBytes = 144;
  static constexpr std::size_t kD = 0;
  static constexpr std::size_t kDmin = 2;
  static constexpr int kOffsetBits = -1;
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) { return scales_of_32(block + 4); }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    return nibbles<kI>(block + 16);
  }
};
template <>
struct Format<DataType::kQ5_K> {
  static constexpr std::size_t kBytes = 176;
  static constexpr std::size_t kD = 0;
  static constexpr std::size_t kDmin = 2;
  static constexpr int kOffsetBits = -1;
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) { return scales_of_32(block + 4); }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    return _mm256_or_si256(nibbles<kI>(block + 48), one_bit<kI, 4>(block + 16));
  }
};
template <>
struct Format<DataType::kQ6_K> {
  static constexpr std::size_t kBytes = 210;
  static constexpr std::size_t kD = 208;
  static constexpr int kOffsetBits = 5;
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) {
    const __m256i scale = _mm256_cvtepi8_epi16(even_then_odd(load128(block + 192)));
    return {scale, scale};
  }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    // Vector 4h + j: bytes 64 h + 32 (j % 2), the high nibbles for j >= 2.
    const __m256i bytes = load256(block + 64 * (kI / 4) + 32 * (kI % 2));
    const __m256i low =
        _mm256_and_si256(_mm256_srli_epi16(bytes, kI % 4 / 2 * 4), _mm256_set1_epi8(15));
    const __m256i high = _mm256_slli_epi16(two_bits<kI>(block + 128), 4);
    return _mm256_or_si256(low, high);
  }
};

template <>
struct Format<DataType::kIQ4_XS> {
  static constexpr std::size_t kBytes = 136;
  static constexpr std::size_t kD = 0;
  static constexpr int kOffsetBits = 0;  // No mins: zeros are taken off.
  RECUA_AVX2_INLINE Scales scales(const std::uint8_t* block) {
    // Groups 0 .. 7 in 16-bit lanes; a group has 32 elements, so both halves are alike.
    const __m128i low = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(static_cast<int>(load_u32(block + 4))));
    const __m128i both = _mm_unpacklo_epi16(low, _mm_srli_epi16(low, 4));
    // Bits 2 g and 2 g + 1, moved to the top of the lane and then to bits 4 and 5.
    const __m128i high = _mm_mullo_epi16(
        _mm_set1_epi16(static_cast<short>(load_u16(block + 2))),
        _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1));
    const __m128i scale =
        _mm_sub_epi16(_mm_or_si128(_mm_and_si128(both, _mm_set1_epi16(15)),
                                   _mm_and_si128(_mm_srli_epi16(high, 10), _mm_set1_epi16(0x30))),
                      _mm_set1_epi16(32));
    return {_mm256_broadcastsi128_si256(scale), _mm256_setzero_si256()};
  }
  template <int kI>
  RECUA_AVX2_INLINE __m256i values(const std::uint8_t* block) {
    const __m128i bytes = load128(block + 8 + 16 * kI);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
    return look_up(quant::kIQ4Values, _mm256_and_si256(both, _mm256_set1_epi8(15)));
  }
};

// Lane kI of each half, everywhere in that half.
template <int kI>
RECUA_AVX2_INLINE __m256i pick_scale(__m256i scales) {
  return _mm256_shuffle_epi8(scales, _mm256_set1_epi16((2 * kI + 1) << 8 | 2 * kI));
}

template <class F, std::size_t kTokens>
struct Tile {
  const std::uint8_t* w;
  const std::int8_t* q[kTokens];
  const float* d[kTokens];
  const std::int16_t* sums[kTokens];
  __m256 sum[kTokens];
  __m256i products[kTokens];

  template <int kI>
  [[gnu::always_inline]] void step(const std::uint8_t* from, std::size_t b, __m256i scales) {
    constexpr bool kSigned = F::kBytes == Format<DataType::kIQ4_XS>::kBytes;
    const __m256i values = F::template values<kI>(from);
    const __m256i magnitudes = kSigned ? _mm256_abs_epi8(values) : values;
    const __m256i scale = pick_scale<kI>(scales);
    for (std::size_t j = 0; j < kTokens; ++j) {
      __m256i x = load256(q[j] + 256 * b + 32 * kI);
      if constexpr (kSigned) x = _mm256_sign_epi8(x, values);
      const __m256i pairs = _mm256_maddubs_epi16(magnitudes, x);
      products[j] = _mm256_add_epi32(products[j], _mm256_madd_epi16(pairs, scale));
      // g++ 12 otherwise reorders the additions of a block and spills most of it.
      __asm__("" : "+x"(products[j]));
    }
  }

  [[gnu::always_inline]] void block(std::size_t b) {
    const std::uint8_t* const from = w + b * F::kBytes;
    const Scales scales = F::scales(from);
    for (std::size_t j = 0; j < kTokens; ++j) products[j] = _mm256_setzero_si256();
    step<0>(from, b, scales.scale);
    step<1>(from, b, scales.scale);
    step<2>(from, b, scales.scale);
    step<3>(from, b, scales.scale);
    step<4>(from, b, scales.scale);
    step<5>(from, b, scales.scale);
    step<6>(from, b, scales.scale);
    step<7>(from, b, scales.scale);
    const float scale = load_f16(from + F::kD);
    for (std::size_t j = 0; j < kTokens; ++j) {
      const __m256i mins = _mm256_madd_epi16(scales.min, load256(sums[j] + 16 * b));
      const float dx = d[j][b];
      if constexpr (F::kOffsetBits >= 0) {
        const __m256i all = _mm256_sub_epi32(products[j], _mm256_slli_epi32(mins, F::kOffsetBits));
        sum[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all), _mm256_set1_ps(scale * dx), sum[j]);
      } else {
        const float dmin = load_f16(from + F::kDmin);
        sum[j] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[j]), _mm256_set1_ps(scale * dx), sum[j]);
        sum[j] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), _mm256_set1_ps(dmin * dx), sum[j]);
      }
    }
  }
};

template <class F, std::size_t kTokens>
void some_tokens(const MatmulArgs& args, std::size_t t) {
  Tile<F, kTokens> tile;
  for (std::size_t j = 0; j < kTokens; ++j) {
    tile.q[j] = q8_values(args.x[t + j]);
    tile.d[j] = q8_scales(args.x[t + j], args.n_in);
    tile.sums[j] = q8x256_sums(args.x[t + j], args.n_in);
  }
  for (std::size_t r = 0; r < args.n_rows; ++r) {
    tile.w = reinterpret_cast<const std::uint8_t*>(args.w + r * args.w_stride);
    for (std::size_t j = 0; j < kTokens; ++j) tile.sum[j] = _mm256_setzero_ps();
    for (std::size_t b = 0; b < args.n_in / 256; ++b) {
      if constexpr (kTokens == 1) prefetch<F::kBytes>(tile.w + b * F::kBytes + kPrefetchBytes);
      tile.block(b);
    }
    for (std::size_t j = 0; j < kTokens; ++j) {
      args.out[t + j][args.out_offset + r] = sum_lanes(tile.sum[j]);
    }
  }
}

}  // namespace

template <DataType kType>
void matmul(const MatmulArgs& args) {
  using F = Format<kType>;
  static_assert(F::kBytes == quant::traits(kType).block_bytes);
  std::size_t t = 0;
  for (; t + 4 <= args.n_tokens; t += 4) some_tokens<F, 4>(args, t);
  if (args.n_tokens - t == 3) some_tokens<F, 3>(args, t);
  if (args.n_tokens - t == 2) some_tokens<F, 2>(args, t);
  if (args.n_tokens - t == 1) some_tokens<F, 1>(args, t);
}

template void matmul<DataType::kQ2_K>(const MatmulArgs&);
template void matmul<DataType::kQ3_K>(const MatmulArgs&);
template void matmul<DataType::kQ4_K>(const MatmulArgs&);
template void matmul<DataType::kQ5_K>(const MatmulArgs&);
template void matmul<DataType::kQ6_K>(const MatmulArgs&);
template void matmul<DataType::kIQ4_XS>(const MatmulArgs&);

}  // namespace recua::kernels::avx2
