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

/// How far ahead of its reads a kernel for few tokens asks for memory. One group's bytes come at 25
/// GB/s with 1 KiB, 28 with 2 and 29 with 4 (Q4_0, plain loads 30).
constexpr std::size_t kAhead = 4096;

}  // namespace recua::kernels::avx512
