// Packed Q2_K, Q3_K, Q5_K and Q6_K (kernels/avx2/packed_groups.h). Q5_K's groups of 32 are taken as
// two of 16 with the same scale, since 16 products of five bits would not fit a 16-bit sum.
#include "kernels/avx2/packed_groups.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

// Bits 2 j and 2 j + 1 of each byte, for j < 4.
RECUA_AVX2_INLINE FourVectors two_bits(__m256i bytes) {
  const __m256i mask = _mm256_set1_epi8(3);
  return {{_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16(bytes, 2), mask),
           _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask),
           _mm256_and_si256(_mm256_srli_epi16(bytes, 6), mask)}};
}

struct NumbersQ2_K {
  static constexpr std::size_t kPieceBytes = 672;
  static constexpr int kOffset = 0;
  static constexpr std::size_t kMinPairs = 8;
  struct Scales {  // In the order of the activations' sums.
    alignas(32) std::uint8_t scale[128];
    alignas(32) std::uint8_t min[128];
  };
  RECUA_AVX2_INLINE void scales(const std::uint8_t* piece, Scales& out) {
    for (std::size_t i = 0; i < 128; i += 32) {
      const Pair pair = nibbles_of(piece + 32 + i);
      store_vector(out.scale + i, pair.low);
      store_vector(out.min + i, pair.high);
    }
  }
  RECUA_AVX2_INLINE __m256i scale(const Scales& scales, std::size_t g) {
    return twice_i16(scales.scale + 8 * (g / 2 + g % 2 * 8));
  }
  RECUA_AVX2_INLINE __m256i min_pair(const Scales& scales, std::size_t i) {
    return pairs_u16(scales.min + 16 * i);
  }
  RECUA_AVX2_INLINE FourVectors quarters(const std::uint8_t* piece, std::size_t half,
                                         std::size_t v) {
    return two_bits(load256(piece + 160 + 32 * (8 * half + v)));
  }
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE __m256 min(const std::uint8_t* piece) { return load8_f16(piece + 16); }
};

struct NumbersQ3_K {
  static constexpr std::size_t kPieceBytes = 880;
  static constexpr int kOffset = 4;
  static constexpr std::size_t kMinPairs = 0;
  struct Scales {
    alignas(32) std::uint8_t scale[128];
  };
  RECUA_AVX2_INLINE void scales(const std::uint8_t* piece, Scales& out) {
    six_bits(piece + 16, out.scale);
    six_bits(piece + 64, out.scale + 64);
    for (std::size_t i = 0; i < 128; i += 32) {
      store_vector(out.scale + i, _mm256_sub_epi8(load256(out.scale + i), _mm256_set1_epi8(32)));
    }
  }
  RECUA_AVX2_INLINE __m256i scale(const Scales& scales, std::size_t g) {
    return twice_i16(scales.scale + 8 * g);
  }
  RECUA_AVX2_INLINE FourVectors quarters(const std::uint8_t* piece, std::size_t half,
                                         std::size_t v) {
    FourVectors four = two_bits(load256(piece + 368 + 32 * (8 * half + v)));
    // Bits 4 half + j of the bytes of vector v.
    const __m256i high =
        _mm256_srli_epi16(load256(piece + 112 + 32 * v), 4 * static_cast<int>(half));
    const __m256i mask = _mm256_set1_epi8(4);
    four.q[0] = _mm256_or_si256(four.q[0], _mm256_and_si256(_mm256_slli_epi16(high, 2), mask));
    four.q[1] = _mm256_or_si256(four.q[1], _mm256_and_si256(_mm256_slli_epi16(high, 1), mask));
    four.q[2] = _mm256_or_si256(four.q[2], _mm256_and_si256(high, mask));
    four.q[3] = _mm256_or_si256(four.q[3], _mm256_and_si256(_mm256_srli_epi16(high, 1), mask));
    return four;
  }
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
};

struct NumbersQ5_K {
  static constexpr std::size_t kPieceBytes = 1408;
  static constexpr int kOffset = 0;
  static constexpr std::size_t kMinPairs = 4;
  struct Scales {
    alignas(32) std::uint8_t scale[64];
    alignas(32) std::uint8_t min[64];
  };
  RECUA_AVX2_INLINE void scales(const std::uint8_t* piece, Scales& out) {
    six_bits(piece + 32, out.scale);
    six_bits(piece + 80, out.min);
  }
  RECUA_AVX2_INLINE __m256i scale(const Scales& scales, std::size_t g) {
    return twice_i16(scales.scale + 8 * (g / 2));
  }
  RECUA_AVX2_INLINE __m256i min_pair(const Scales& scales, std::size_t i) {
    return pairs_u16(scales.min + 16 * i);
  }
  RECUA_AVX2_INLINE FourVectors quarters(const std::uint8_t* piece, std::size_t half,
                                         std::size_t v) {
    const Pair first = nibbles_of(piece + 384 + 32 * (16 * half + v));
    const Pair second = nibbles_of(piece + 384 + 32 * (16 * half + 8 + v));
    // Bits 4 half + j of the bytes of vector v.
    const __m256i high =
        _mm256_srli_epi16(load256(piece + 128 + 32 * v), 4 * static_cast<int>(half));
    const __m256i mask = _mm256_set1_epi8(16);
    return {{_mm256_or_si256(first.low, _mm256_and_si256(_mm256_slli_epi16(high, 4), mask)),
             _mm256_or_si256(first.high, _mm256_and_si256(_mm256_slli_epi16(high, 3), mask)),
             _mm256_or_si256(second.low, _mm256_and_si256(_mm256_slli_epi16(high, 2), mask)),
             _mm256_or_si256(second.high, _mm256_and_si256(_mm256_slli_epi16(high, 1), mask))}};
  }
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
  RECUA_AVX2_INLINE __m256 min(const std::uint8_t* piece) { return load8_f16(piece + 16); }
};

struct NumbersQ6_K {
  static constexpr std::size_t kPieceBytes = 1680;
  static constexpr int kOffset = 32;
  static constexpr std::size_t kMinPairs = 0;
  struct Scales {
    const std::uint8_t* scale;
  };
  RECUA_AVX2_INLINE void scales(const std::uint8_t* piece, Scales& out) { out.scale = piece + 16; }
  RECUA_AVX2_INLINE __m256i scale(const Scales& scales, std::size_t g) {
    return twice_i16(scales.scale + 8 * g);
  }
  RECUA_AVX2_INLINE FourVectors quarters(const std::uint8_t* piece, std::size_t half,
                                         std::size_t v) {
    const std::uint8_t* const from = piece + 144 + 96 * (8 * half + v);
    const __m256i first = load256(from);
    const __m256i second = load256(from + 32);
    const __m256i high = load256(from + 64);
    const __m256i mask = _mm256_set1_epi8(0x30);
    const auto with = [&](__m256i low, __m256i moved) __attribute__((always_inline)) {
      return _mm256_or_si256(low, _mm256_and_si256(moved, mask));
    };
    return {{with(low_nibbles(first), _mm256_slli_epi16(high, 4)),
             with(low_nibbles(second), _mm256_slli_epi16(high, 2)), with(high_nibbles(first), high),
             with(high_nibbles(second), _mm256_srli_epi16(high, 2))}};
  }
  RECUA_AVX2_INLINE __m256 scale(const std::uint8_t* piece) { return load8_f16(piece); }
};

}  // namespace

template <>
void packed_matmul<DataType::kQ2_K>(const MatmulArgs& args) {
  multiply_packed<PackedGroups<NumbersQ2_K>>(args);
}
template <>
void packed_matmul<DataType::kQ3_K>(const MatmulArgs& args) {
  multiply_packed<PackedGroups<NumbersQ3_K>>(args);
}
template <>
void packed_matmul<DataType::kQ5_K>(const MatmulArgs& args) {
  multiply_packed<PackedGroups<NumbersQ5_K>>(args);
}

template <>
void packed_matmul<DataType::kQ6_K>(const MatmulArgs& args) {
  multiply_packed<PackedGroups<NumbersQ6_K>>(args);
}

}  // namespace recua::kernels::avx2
