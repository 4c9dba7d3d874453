#pragma once
/// What the AVX-512 kernels share. Only files built with AVX-512 F, BW, DQ, VL and VNNI include
/// this. What is said in avx2/common.h of inline functions holds here, too.

#include "kernels/avx2/common.h"

#define RECUA_AVX512_INLINE RECUA_AVX2_INLINE

namespace recua::kernels::avx512 {

using avx2::load128;
using avx2::load256;

/// The first n of 16 lanes.
RECUA_AVX512_INLINE __mmask16 first_lanes(std::size_t n) {
  return n >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << n) - 1U);
}

RECUA_AVX512_INLINE __m512i load512(const void* p) { return _mm512_loadu_si512(p); }
RECUA_AVX512_INLINE void store512(void* p, __m512i value) { _mm512_store_si512(p, value); }

/// Four bytes at any alignment, to be broadcast.
RECUA_AVX512_INLINE int four_bytes(const void* p) {
  int value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

/// avx2::exp_lanes() of 16 lanes, the same bits.
RECUA_AVX512_INLINE __m512 exp_lanes(__m512 x) {
  // min and max return their second operand when one is a NaN.
  x = _mm512_min_ps(_mm512_set1_ps(88.0F), _mm512_max_ps(_mm512_set1_ps(-87.3F), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4F);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1F));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(p, n);
}

/// How far ahead of its reads a kernel for few tokens asks for memory. One group's bytes come at 25
/// GB/s with 1 KiB, 28 with 2 and 29 with 4 (Q4_0, plain loads 30) on Zen 4; on Zen 5 one thread is
/// 1.05 times as fast with 6 as with 4, and with 16.
constexpr std::size_t kAhead = 6144;

}  // namespace recua::kernels::avx512
