#pragma once
/// What packed products ask of memory while their tiles compute. Only files built with -mavx2
/// include this, those of avx512/ among others.

#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {

/// What will be unpacked next, asked for a few lines at a time: there is room for some 24 misses,
/// and whoever asks for more at once waits for memory and computes nothing.
template <std::size_t kGroups>
struct Ahead {
  const std::uint8_t* next;  // The first of kGroups groups,
  std::size_t stride;        // so far apart,
  std::size_t n_bytes;       // so much of each.
  std::size_t at = 0;

  template <std::size_t kLines>
  [[gnu::always_inline]] void step() {
    if (at >= n_bytes) return;
    RECUA_UNROLL
    for (std::size_t g = 0; g < kGroups; ++g) {
      prefetch<64 * kLines>(next + g * stride + at);
    }
    at += 64 * kLines;
  }
};

/// As much as a chunk behind the one that begins at b, of n_blocks in all, of a format F. Groups
/// lie one after the other: behind these rows' last pieces are those of other rows that were just
/// read, and the next ones' begin where the last group ends.
template <class F, std::size_t kGroups>
RECUA_AVX2_INLINE Ahead<kGroups> behind(const std::uint8_t* groups, std::size_t stride,
                                        std::size_t b, std::size_t n_blocks, std::size_t chunk) {
  const std::size_t next = b + chunk < n_blocks ? (b + chunk) * F::kPieceBytes : kGroups * stride;
  return {.next = groups + next, .stride = stride, .n_bytes = chunk * F::kPieceBytes};
}

}  // namespace recua::kernels::avx2
