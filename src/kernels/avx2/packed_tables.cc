// Packed types whose numbers are looked up in a table.
//
// IQ4_NL and IQ4_XS have numbers of eight bits, so they are multiplied as those of Q8_0 are; the
// scales of IQ4_XS's groups become f32 when they are unpacked, so that it is eight blocks of
// IQ4_NL. MXFP4's numbers are at most 12 in magnitude: with 12 added they are unsigned bytes of
// five bits.
#include "kernels/avx2/packed_words.h"
#include "quant/blocks.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

RECUA_AVX2_INLINE Pair iq4_values(const std::uint8_t* p) {
  const Pair nibbles = nibbles_of(p);
  return {look_up(quant::kIQ4Values, nibbles.low), look_up(quant::kIQ4Values, nibbles.high)};
}

struct NumbersIQ4_NL {
  static constexpr std::size_t kPieceBytes = 144;
  static constexpr std::size_t kBlocks = 1;
  static constexpr bool kNeighbours = false;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece, std::size_t) {
    return load8_f16(piece);
  }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t, std::size_t j) {
    return iq4_values(piece + 16 + 32 * j);
  }
};

struct NumbersIQ4_XS {
  static constexpr std::size_t kPieceBytes = 1088;
  static constexpr std::size_t kBlocks = 8;
  static constexpr bool kNeighbours = false;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece, std::size_t b) {
    const auto shift = static_cast<int>(b);
    const __m256i low = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(piece + 32 + b / 2 * 8)));
    const __m256i high = _mm256_cvtepu16_epi32(load128(piece + 16));
    const __m256i four =
        _mm256_and_si256(_mm256_srli_epi32(low, shift % 2 * 4), _mm256_set1_epi32(15));
    const __m256i two = _mm256_and_si256(_mm256_srli_epi32(high, 2 * shift), _mm256_set1_epi32(3));
    const __m256i all = _mm256_or_si256(four, _mm256_slli_epi32(two, 4));
    const __m256i multiple = _mm256_sub_epi32(all, _mm256_set1_epi32(32));
    return _mm256_mul_ps(load8_f16(piece), _mm256_cvtepi32_ps(multiple));
  }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t b, std::size_t j) {
    return iq4_values(piece + 64 + 128 * b + 32 * j);
  }
};

constexpr std::int8_t kFp4PlusTwelve[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                            12, 11, 10, 9,  8,  6,  4,  0};

struct NumbersMXFP4 {
  static constexpr std::size_t kPieceBytes = 136;
  static constexpr int kOffset = 12;
  static constexpr bool kHasMin = false;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return half_of_e8m0(piece); }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t j) {
    const Pair nibbles = nibbles_of(piece + 8 + 32 * j);
    return {look_up(kFp4PlusTwelve, nibbles.low), look_up(kFp4PlusTwelve, nibbles.high)};
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kIQ4_NL>(const MatmulArgs& args) {
  multiply_packed<PackedWords<NumbersIQ4_NL>>(args);
}
template <>
void packed_matmul<DataType::kIQ4_XS>(const MatmulArgs& args) {
  multiply_packed<PackedWords<NumbersIQ4_XS>>(args);
}
template <>
void packed_matmul<DataType::kMXFP4>(const MatmulArgs& args) {
  multiply_packed<PackedBytes<NumbersMXFP4>>(args);
}

}  // namespace recua::kernels::avx2
