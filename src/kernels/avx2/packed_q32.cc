// Packed types with blocks of 32 (kernels/packed.h has the layouts). Five bits are too many to be
// summed as they are, so 16 is taken off them; of Q5_1 that is put back into the minimum.
#include "kernels/avx2/packed_words.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

struct NumbersQ8_0 {
  static constexpr std::size_t kPieceBytes = 272;
  static constexpr std::size_t kBlocks = 1;
  static constexpr bool kNeighbours = true;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece, std::size_t) {
    return load8_f16(piece);
  }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t, std::size_t j) {
    return {load256(piece + 16 + 64 * j), load256(piece + 48 + 64 * j)};
  }
};

struct NumbersQ4_0 {
  static constexpr std::size_t kPieceBytes = 144;
  static constexpr int kOffset = 8;
  static constexpr bool kHasMin = false;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t j) {
    return nibbles_of(piece + 16 + 32 * j);
  }
};

// Nibbles at qs with the fifth bits on top: bit j of a byte of `fifths` belongs to vector j.
RECUA_AVX2_INLINE Pair five_bits(const std::uint8_t* qs, const std::uint8_t* fifths,
                                 std::size_t j) {
  const Pair nibbles = nibbles_of(qs + 32 * j);
  const __m256i bits = _mm256_srli_epi16(load256(fifths), static_cast<int>(j));
  const __m256i sixteen = _mm256_set1_epi8(16);
  return {_mm256_or_si256(nibbles.low, _mm256_and_si256(_mm256_slli_epi16(bits, 4), sixteen)),
          _mm256_or_si256(nibbles.high, _mm256_and_si256(bits, sixteen))};
}

struct NumbersQ4_1 {
  static constexpr std::size_t kPieceBytes = 160;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = true;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE __m256 min(const std::uint8_t* piece) { return load8_f16(piece + 16); }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t j) {
    return nibbles_of(piece + 32 + 32 * j);
  }
};

struct NumbersQ5_0 {
  static constexpr std::size_t kPieceBytes = 176;
  static constexpr int kOffset = 16;
  static constexpr bool kHasMin = false;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t j) {
    return five_bits(piece + 48, piece + 16, j);
  }
};

struct NumbersQ5_1 {
  static constexpr std::size_t kPieceBytes = 192;
  static constexpr int kOffset = 16;
  static constexpr bool kHasMin = true;
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE __m256 min(const std::uint8_t* piece) {
    return _mm256_fmadd_ps(scale(piece), _mm256_set1_ps(kOffset), load8_f16(piece + 16));
  }
  RECUA_AVX2_INLINE Pair pair(const std::uint8_t* piece, std::size_t j) {
    return five_bits(piece + 64, piece + 32, j);
  }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ8_0>(const MatmulArgs& args) {
  multiply_packed<PackedWords<NumbersQ8_0>>(args);
}
template <>
void packed_matmul<DataType::kQ4_0>(const MatmulArgs& args) {
  multiply_packed<PackedBytes<NumbersQ4_0>>(args);
}
template <>
void packed_matmul<DataType::kQ4_1>(const MatmulArgs& args) {
  multiply_packed<PackedBytes<NumbersQ4_1>>(args);
}
template <>
void packed_matmul<DataType::kQ5_0>(const MatmulArgs& args) {
  multiply_packed<PackedBytes<NumbersQ5_0>>(args);
}
template <>
void packed_matmul<DataType::kQ5_1>(const MatmulArgs& args) {
  multiply_packed<PackedBytes<NumbersQ5_1>>(args);
}

}  // namespace recua::kernels::avx2
