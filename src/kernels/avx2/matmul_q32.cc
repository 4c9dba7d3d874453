// Types with blocks of 32. A block is unpacked to one vector of bytes, which meets up to four
// tokens.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits. Types without offset
// have signed weights: |w| times x with w's sign is the same product. Pairs: 2 * 128 * 127 = 32512
// fits (hence no -128 among the activations). Each output has one vector sum over blocks in order.
#include "kernels/activation.h"
#include "kernels/avx2/common.h"
#include "kernels/matmul.h"
#include "quant/blocks.h"

namespace recua::kernels::avx2 {
namespace {

using quant::DataType;

// 16 bytes to 32 nibbles: the low ones, then the high ones.
RECUA_AVX2_INLINE __m256i nibbles(const std::uint8_t* qs) {
  const __m128i low = load128(qs);
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(low, 4), low);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// 32 bits to 32 bytes, 0xff where the bit is set.
RECUA_AVX2_INLINE __m256i bits_to_masks(const std::uint8_t* qh) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(load_u32(qh)));
  const __m256i spread = _mm256_shuffle_epi8(
      all, _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

// The block layouts are those of quant/blocks.h: kBytes long, scale at 0, offset (if any) at 2.
template <DataType kType>
struct Format;
template <>
struct Format<DataType::kQ8_0> {
  static constexpr std::size_t kBytes = 34;
  static constexpr bool kHasOffset = false;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) { return load256(block + 2); }
};
template <>
struct Format<DataType::kQ4_0> {
  static constexpr std::size_t kBytes = 18;
  static constexpr bool kHasOffset = false;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) {
    return _mm256_sub_epi8(nibbles(block + 2), _mm256_set1_epi8(8));
  }
};
template <>
struct Format<DataType::kQ4_1> {
  static constexpr std::size_t kBytes = 20;
  static constexpr bool kHasOffset = true;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) { return nibbles(block + 4); }
};
template <>
struct Format<DataType::kQ5_0> {
  static constexpr std::size_t kBytes = 22;
  static constexpr bool kHasOffset = false;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) {
    // Without the fifth bit, 16 less: that is 0xf0 over a nibble.
    const __m256i less =
        _mm256_andnot_si256(bits_to_masks(block + 2), _mm256_set1_epi8(static_cast<char>(0xf0)));
    return _mm256_or_si256(nibbles(block + 6), less);
  }
};
template <>
struct Format<DataType::kQ5_1> {
  static constexpr std::size_t kBytes = 24;
  static constexpr bool kHasOffset = true;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) {
    const __m256i more = _mm256_and_si256(bits_to_masks(block + 4), _mm256_set1_epi8(16));
    return _mm256_or_si256(nibbles(block + 8), more);
  }
};

template <>
struct Format<DataType::kIQ4_NL> {
  static constexpr std::size_t kBytes = 18;
  static constexpr bool kHasOffset = false;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) {
    return look_up(quant::kIQ4Values, nibbles(block + 2));
  }
};
template <>
struct Format<DataType::kMXFP4> {
  static constexpr std::size_t kBytes = 17;
  static constexpr bool kHasOffset = false;
  RECUA_AVX2_INLINE __m256i unpack(const std::uint8_t* block) {
    return look_up(quant::kFp4Values, nibbles(block + 1));
  }
};

// The F16 numbers at `at` of n <= 8 blocks as f32, zeros above.
template <std::size_t kBytes>
RECUA_AVX2_INLINE __m256 gather_f16(const std::uint8_t* at, std::size_t n) {
  if (n < 8) {
    std::uint16_t halves[8] = {};
    for (std::size_t i = 0; i < n; ++i) __builtin_memcpy(halves + i, at + i * kBytes, 2);
    return _mm256_cvtph_ps(load128(halves));
  }
  __m128i halves = _mm_setzero_si128();
  halves = _mm_insert_epi16(halves, load_u16(at), 0);
  halves = _mm_insert_epi16(halves, load_u16(at + kBytes), 1);
  halves = _mm_insert_epi16(halves, load_u16(at + 2 * kBytes), 2);
  halves = _mm_insert_epi16(halves, load_u16(at + 3 * kBytes), 3);
  halves = _mm_insert_epi16(halves, load_u16(at + 4 * kBytes), 4);
  halves = _mm_insert_epi16(halves, load_u16(at + 5 * kBytes), 5);
  halves = _mm_insert_epi16(halves, load_u16(at + 6 * kBytes), 6);
  halves = _mm_insert_epi16(halves, load_u16(at + 7 * kBytes), 7);
  return _mm256_cvtph_ps(halves);
}

// The scales of n <= 8 blocks as f32; what stands above them counts for nothing.
template <class F>
RECUA_AVX2_INLINE __m256 gather_scales(const std::uint8_t* at, std::size_t n) {
  if constexpr (F::kBytes == Format<DataType::kMXFP4>::kBytes) {
    std::uint8_t exponents[8] = {};
    for (std::size_t i = 0; i < n; ++i) exponents[i] = at[i * F::kBytes];
    return half_of_e8m0(exponents);
  } else {
    return gather_f16<F::kBytes>(at, n);
  }
}

// Blocks are taken eight at a time: then the products of scales, and the whole offset part, are a
// vector operation each, instead of several per block.
template <class F, std::size_t kRows, std::size_t kTokens>
struct Tile {
  const std::uint8_t* w[kRows];
  const std::int8_t* q[kTokens];
  const float* d[kTokens];
  const float* s[kTokens];
  __m256 sum[kRows][kTokens];
  __m256 offset_sum[kRows][kTokens];

  // The blocks [b, b + n), n <= 8.
  [[gnu::always_inline]] void blocks(std::size_t b, std::size_t n) {
    alignas(32) float scales[kRows][kTokens][8];
    const __m256i mask = first_lanes(n);
    for (std::size_t i = 0; i < kRows; ++i) {
      const std::uint8_t* const from = w[i] + b * F::kBytes;
      const __m256 scale = gather_scales<F>(from, n);
      for (std::size_t j = 0; j < kTokens; ++j) {
        const __m256 dx = n < 8 ? _mm256_maskload_ps(d[j] + b, mask) : _mm256_loadu_ps(d[j] + b);
        _mm256_store_ps(scales[i][j], _mm256_mul_ps(scale, dx));
      }
      if constexpr (F::kHasOffset) {
        const __m256 offset = gather_f16<F::kBytes>(from + 2, n);
        for (std::size_t j = 0; j < kTokens; ++j) {
          const __m256 sx = n < 8 ? _mm256_maskload_ps(s[j] + b, mask) : _mm256_loadu_ps(s[j] + b);
          offset_sum[i][j] = _mm256_fmadd_ps(offset, sx, offset_sum[i][j]);
        }
      }
    }
    for (std::size_t k = 0; k < n; ++k) {
      for (std::size_t i = 0; i < kRows; ++i) {
        const __m256i weights = F::unpack(w[i] + (b + k) * F::kBytes);
        const __m256i magnitudes = F::kHasOffset ? weights : _mm256_sign_epi8(weights, weights);
        for (std::size_t j = 0; j < kTokens; ++j) {
          __m256i x = load256(q[j] + 32 * (b + k));
          if constexpr (!F::kHasOffset) x = _mm256_sign_epi8(x, weights);
          const __m256i fours =
              _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, x), _mm256_set1_epi16(1));
          sum[i][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours),
                                      _mm256_broadcast_ss(&scales[i][j][k]), sum[i][j]);
        }
      }
    }
  }
};

template <class F, std::size_t kRows, std::size_t kTokens>
RECUA_AVX2_INLINE void tile(const MatmulArgs& args, std::size_t r, std::size_t t) {
  Tile<F, kRows, kTokens> tile;
  for (std::size_t i = 0; i < kRows; ++i) {
    tile.w[i] = reinterpret_cast<const std::uint8_t*>(args.w + (r + i) * args.w_stride);
    for (std::size_t j = 0; j < kTokens; ++j) {
      tile.sum[i][j] = _mm256_setzero_ps();
      tile.offset_sum[i][j] = _mm256_setzero_ps();
    }
  }
  for (std::size_t j = 0; j < kTokens; ++j) {
    tile.q[j] = q8_values(args.x[t + j]);
    tile.d[j] = q8_scales(args.x[t + j], args.n_in);
    tile.s[j] = q8x32_sums(args.x[t + j], args.n_in);
  }
  const std::size_t n_blocks = args.n_in / 32;
  std::size_t b = 0;
  for (; b + 8 <= n_blocks; b += 8) {
    if constexpr (kTokens == 1) {
      const std::size_t offset = prefetch_offset(b * F::kBytes, args.w_stride, kRows);
      for (std::size_t i = 0; i < kRows; ++i) prefetch<8 * F::kBytes>(tile.w[i] + offset);
    }
    tile.blocks(b, 8);
  }
  if (b < n_blocks) tile.blocks(b, n_blocks - b);
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kTokens; ++j) {
      __m256 sum = tile.sum[i][j];
      if constexpr (F::kHasOffset) sum = _mm256_add_ps(sum, tile.offset_sum[i][j]);
      args.out[t + j][args.out_offset + r + i] = sum_lanes(sum);
    }
  }
}

// One token alone takes two rows at a time: two chains of FMAs hide their latency.
template <class F>
void one_token(const MatmulArgs& args, std::size_t t) {
  std::size_t r = 0;
  for (; r + 2 <= args.n_rows; r += 2) tile<F, 2, 1>(args, r, t);
  if (r < args.n_rows) tile<F, 1, 1>(args, r, t);
}

template <class F, std::size_t kTokens>
void some_tokens(const MatmulArgs& args, std::size_t t) {
  for (std::size_t r = 0; r < args.n_rows; ++r) tile<F, 1, kTokens>(args, r, t);
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
  if (args.n_tokens - t == 1) one_token<F>(args, t);
}

template void matmul<DataType::kQ8_0>(const MatmulArgs&);
template void matmul<DataType::kQ4_0>(const MatmulArgs&);
template void matmul<DataType::kQ4_1>(const MatmulArgs&);
template void matmul<DataType::kQ5_0>(const MatmulArgs&);
template void matmul<DataType::kQ5_1>(const MatmulArgs&);
template void matmul<DataType::kIQ4_NL>(const MatmulArgs&);
template void matmul<DataType::kMXFP4>(const MatmulArgs&);

}  // namespace recua::kernels::avx2
