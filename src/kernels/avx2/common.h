#pragma once
/// What the AVX2 kernels share. Only files built with -mavx2 -mfma -mf16c include this
/// (those of avx512/ are, among others).
///
/// Everything is forced inline, and neither this nor those files use inline functions of the
/// standard library: a copy compiled with AVX2 could be the one that the linker keeps for all.

#include <cstddef>
#include <cstdint>
#include <immintrin.h>

#define RECUA_AVX2_INLINE [[gnu::always_inline]] static inline

/// In front of the loops of a tile, whose sums stay in registers only when nothing indexes them at
/// run time.
#define RECUA_UNROLL _Pragma("GCC unroll 16")

namespace recua::kernels::avx2 {

/// All bits set in the first n of 8 lanes, n <= 8.
RECUA_AVX2_INLINE __m256i first_lanes(std::size_t n) {
  alignas(64) static constexpr std::int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                         0,  0,  0,  0,  0,  0,  0,  0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - n));
}

/// Sum of the lanes, always as ((0+4)+(2+6)) + ((1+5)+(3+7)).
RECUA_AVX2_INLINE float sum_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

RECUA_AVX2_INLINE float max_lanes(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

RECUA_AVX2_INLINE __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
RECUA_AVX2_INLINE __m128i load128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

/// The little-endian number at p, at any alignment.
RECUA_AVX2_INLINE std::uint32_t load_u32(const std::uint8_t* p) {
  std::uint32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}
RECUA_AVX2_INLINE std::uint16_t load_u16(const std::uint8_t* p) {
  std::uint16_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}
RECUA_AVX2_INLINE float load_f16(const std::uint8_t* p) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p))));
}

/// Nibbles (0 .. 15 in each byte) to the bytes of a table of 16 (quant/blocks.h).
RECUA_AVX2_INLINE __m256i look_up(const std::int8_t* table, __m256i nibbles) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), nibbles);
}

/// 2^(e - 128) of eight bytes e, as quant::half_of_e8m0() has it.
RECUA_AVX2_INLINE __m256 half_of_e8m0(const void* p) {
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  const __m256i is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
  return _mm256_castsi256_ps(_mm256_blendv_epi8(denormal, normal, is_normal));
}

/// How far ahead of its reads a kernel for one token asks for memory. 1 KiB suits every format:
/// measured 1.3 to 1.85 times the speed of 4-bit decoding without, since unpacking fills the
/// reorder window and leaves few misses in flight.
constexpr std::size_t kPrefetchBytes = 1024;

/// Asks for the lines of [p, p + kBytes).
template <std::size_t kBytes>
RECUA_AVX2_INLINE void prefetch(const void* p) {
  for (std::size_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
  }
}

/// How many of `rest` the next part takes, of `most` at most, for all parts to be about even: of
/// tokens a tile, of blocks a chunk.
RECUA_AVX2_INLINE std::size_t even_part(std::size_t rest, std::size_t most) {
  const std::size_t n_parts = (rest + most - 1) / most;
  return (rest + n_parts - 1) / n_parts;
}

/// step(0) to step(n - 1), four of them written out one after the other: for F16 a line of each
/// stream, when groups were of eight rows; other numbers were not measured since.
template <class Step>
RECUA_AVX2_INLINE void each_step(std::size_t n, Step&& step) {
  constexpr std::size_t kSteps = 4;
  std::size_t i = 0;
  for (; i + kSteps <= n; i += kSteps) {
    RECUA_UNROLL
    for (std::size_t j = 0; j < kSteps; ++j) step(i + j);
  }
  for (; i < n; ++i) step(i);
}

/// For a kernel that walks n_rows rows of w_stride bytes side by side and then the n_rows after
/// them: from byte `at` of a row to what it will read kPrefetchBytes later. (Past the matrix it
/// names memory that may not exist; a prefetch does not mind.)
RECUA_AVX2_INLINE std::size_t prefetch_offset(std::size_t at, std::size_t w_stride,
                                              std::size_t n_rows) {
  const std::size_t ahead = at + kPrefetchBytes;
  return ahead < w_stride ? ahead : ahead + (n_rows - 1) * w_stride;
}

/// exp(x) within 2^-21 relative, for x clamped to [-87.3, 88]; a NaN stays one.
///
/// With n = round(x / ln 2) and r = x - n ln 2, |r| <= 0.347: exp(x) = 2^n exp(r). ln 2 is
/// subtracted in two parts, the first with few enough bits that n times it is exact. exp(r) = 1 + r
/// + r^2 P(r); P is the minimax polynomial of Cephes' expf (S. Moshier), error below 2^-23.
RECUA_AVX2_INLINE __m256 exp_lanes(__m256 x) {
  // min and max return their second operand when one is a NaN.
  x = _mm256_min_ps(_mm256_set1_ps(88.0F), _mm256_max_ps(_mm256_set1_ps(-87.3F), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4F);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1F));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0F));
  // n is in [-126, 127], so 2^n is a normal number made from its exponent bits.
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

}  // namespace recua::kernels::avx2
