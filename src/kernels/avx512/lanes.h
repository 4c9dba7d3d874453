#pragma once
/// One group of packed rows, or two side by side, as vectors of 32-bit lanes with one row each: so
/// that what works on either is written once. Only files built with AVX-512 F, BW, DQ, VL and VNNI
/// include this.
///
/// Ints are bit patterns: the compilers' & | ^ << >> (by 64 bits, so mask what crosses a byte) work
/// on both widths.

#include "kernels/avx512/common.h"

namespace recua::kernels::avx512 {

struct Lanes8 {
  using Ints = __m256i;
  using Floats = __m256;
  RECUA_AVX512_INLINE Ints bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  RECUA_AVX512_INLINE Ints ints(int value) { return _mm256_set1_epi32(value); }
  RECUA_AVX512_INLINE Floats floats(float value) { return _mm256_set1_ps(value); }
  /// s + four products of unsigned w and signed x per lane.
  RECUA_AVX512_INLINE Ints add_products(Ints s, Ints w, Ints x) {
    return _mm256_dpbusd_epi32(s, w, x);
  }
  /// s + two products of 16-bit numbers per lane.
  RECUA_AVX512_INLINE Ints add_pairs(Ints s, Ints w, Ints x) {
    return _mm256_dpwssd_epi32(s, w, x);
  }
  RECUA_AVX512_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  RECUA_AVX512_INLINE Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  RECUA_AVX512_INLINE Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
  RECUA_AVX512_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  /// c + a * b and c - a * b, rounded once.
  RECUA_AVX512_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  RECUA_AVX512_INLINE Floats fnma(Floats a, Floats b, Floats c) {
    return _mm256_fnmadd_ps(a, b, c);
  }
  /// A byte per lane.
  RECUA_AVX512_INLINE Ints unsigned_bytes(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
};

struct Lanes16 {
  using Ints = __m512i;
  using Floats = __m512;
  RECUA_AVX512_INLINE Ints bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  RECUA_AVX512_INLINE Ints ints(int value) { return _mm512_set1_epi32(value); }
  RECUA_AVX512_INLINE Floats floats(float value) { return _mm512_set1_ps(value); }
  RECUA_AVX512_INLINE Ints add_products(Ints s, Ints w, Ints x) {
    return _mm512_dpbusd_epi32(s, w, x);
  }
  RECUA_AVX512_INLINE Ints add_pairs(Ints s, Ints w, Ints x) {
    return _mm512_dpwssd_epi32(s, w, x);
  }
  RECUA_AVX512_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  RECUA_AVX512_INLINE Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  RECUA_AVX512_INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
  RECUA_AVX512_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  RECUA_AVX512_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  RECUA_AVX512_INLINE Floats fnma(Floats a, Floats b, Floats c) {
    return _mm512_fnmadd_ps(a, b, c);
  }
  RECUA_AVX512_INLINE Ints unsigned_bytes(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(load128(p));
  }
};

/// The end of a block of a type without minimums: sum + s * (dx * d), s exact.
template <class L>
RECUA_AVX512_INLINE typename L::Floats add_block(typename L::Ints s, float dx, typename L::Floats d,
                                                 typename L::Floats sum) {
  return L::fma(L::to_floats(s), L::multiply(d, L::floats(dx)), sum);
}

/// Eight rows: what is at the same place `at` of a group for each of them.
struct OneGroup : Lanes8 {
  static constexpr std::size_t kRows = 8;
  const std::uint8_t* w = nullptr;

  explicit OneGroup(const std::uint8_t* group) : w(group) {}
  [[gnu::always_inline]] OneGroup from(std::size_t at) const { return OneGroup(w + at); }
  template <std::size_t kBytes>
  [[gnu::always_inline]] void prefetch(std::size_t at) const {
    avx2::prefetch<kBytes>(w + at);
  }
  [[gnu::always_inline]] Ints dwords(std::size_t at) const { return load256(w + at); }
  [[gnu::always_inline]] Floats halves(std::size_t at) const {
    return _mm256_cvtph_ps(load128(w + at));
  }
  [[gnu::always_inline]] Ints signed_bytes(std::size_t at) const {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w + at)));
  }
  /// Six-bit planes (kernels/packed.h) to bytes out[8 groups of elements][kRows].
  [[gnu::always_inline]] void six_bits(std::size_t at, std::uint8_t* out) const {
    const __m256i low = load256(w + at);
    const __m256i high = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(load128(w + at + 32)),
                                           _mm256_setr_epi64x(0, 0, 2, 2));
    const __m256i first = (low & bytes(15)) | ((high << 4) & bytes(0x30));
    const __m256i second = ((low >> 4) & bytes(15)) | (high & bytes(0x30));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), first);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32), second);
  }
};

/// Sixteen rows, the second group's in the upper half of a vector.
struct TwoGroups : Lanes16 {
  static constexpr std::size_t kRows = 16;
  const std::uint8_t* a = nullptr;
  const std::uint8_t* b = nullptr;

  TwoGroups(const std::uint8_t* first, const std::uint8_t* second) : a(first), b(second) {}
  [[gnu::always_inline]] TwoGroups from(std::size_t at) const { return {a + at, b + at}; }
  template <std::size_t kBytes>
  [[gnu::always_inline]] void prefetch(std::size_t at) const {
    avx2::prefetch<kBytes>(a + at);
    avx2::prefetch<kBytes>(b + at);
  }
  [[gnu::always_inline]] Ints dwords(std::size_t at) const {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load256(a + at)), load256(b + at), 1);
  }
  [[gnu::always_inline]] Floats halves(std::size_t at) const {
    return _mm512_cvtph_ps(_mm256_set_m128i(load128(b + at), load128(a + at)));
  }
  [[gnu::always_inline]] Ints signed_bytes(std::size_t at) const {
    return _mm512_cvtepi8_epi32(
        _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a + at)),
                           _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b + at))));
  }
  [[gnu::always_inline]] void six_bits(std::size_t at, std::uint8_t* out) const {
    alignas(32) std::uint8_t halves_of[2][64];
    OneGroup(a).six_bits(at, halves_of[0]);
    OneGroup(b).six_bits(at, halves_of[1]);
    // Each has eight bytes per group of elements; the two belong side by side.
    const __m512i order_low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i order_high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    const __m512i first = load512(halves_of[0]);
    const __m512i second = load512(halves_of[1]);
    store512(out, _mm512_permutex2var_epi64(first, order_low, second));
    store512(out + 64, _mm512_permutex2var_epi64(first, order_high, second));
  }
};

}  // namespace recua::kernels::avx512
