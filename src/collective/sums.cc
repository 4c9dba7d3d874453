#include "collective/sums.h"

#include <algorithm>
#include <array>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/check.h"
#include "sys/cpu_features.h"

namespace recua::collective {
namespace {

/// What is summed while it stays in the nearest cache: 4 KiB. Whole blocks of every format.
constexpr std::size_t kValues = 1024;
static_assert(kValues % kFormatBlock == 0);

void add_to_plain(float* __restrict sum, const float* __restrict more, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
}

#if defined(__x86_64__)
// The same with vectors of 8 and 16 instead of 4.
[[gnu::target("avx2")]] void add_to_avx2(float* __restrict sum, const float* __restrict more,
                                         std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
}

[[gnu::target("avx512f")]] void add_to_avx512(float* __restrict sum, const float* __restrict more,
                                              std::size_t n) {
  std::size_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (std::size_t j = i; j < i + 64; j += 16) {
      _mm512_storeu_ps(sum + j, _mm512_add_ps(_mm512_loadu_ps(sum + j), _mm512_loadu_ps(more + j)));
    }
  }
  for (; i < n; ++i) sum[i] += more[i];
}
#endif

constexpr std::array kLoops = {
#if defined(__x86_64__)
    AddTo{add_to_avx512}, AddTo{add_to_avx2},
#endif
    AddTo{add_to_plain}};

}  // namespace

std::span<const AddTo> add_loops() {
#if defined(__x86_64__)
  const bool has_avx2 = sys::supported(sys::InstructionSet::kAvx2);
  const bool has_avx512 = sys::supported(sys::InstructionSet::kAvx512);
  return std::span(kLoops).subspan(has_avx512 ? 0 : has_avx2 ? 1 : 2);
#else
  return kLoops;
#endif
}

void sum_in_rank_order(WireFormat format, std::span<const std::byte* const> parts, std::size_t own,
                       std::span<float> values) {
  RECUA_DCHECK(own < parts.size());
  static const AddTo add_to = add_loops().front();
  std::array<float, kValues> sum;
  std::array<float, kValues> decoded;
  if (format == WireFormat::kF32 && parts.size() == 2) {
    add_to(values.data(), reinterpret_cast<const float*>(parts[1 - own]), values.size());
    return;
  }
  for (std::size_t begin = 0; begin < values.size(); begin += kValues) {
    const std::size_t n = std::min(kValues, values.size() - begin);
    float* const mine = values.data() + begin;
    const auto part = [&](std::size_t r) -> const float* {
      if (r == own) return mine;
      const std::byte* const at = parts[r] + wire_bytes(format, begin);
      if (format == WireFormat::kF32) return reinterpret_cast<const float*>(at);
      decode(format, at, std::span(decoded).first(n));
      return decoded.data();
    };
    if (own < 2) {  // The own values can be added to where they are: a + b is b + a.
      add_to(mine, part(1 - own), n);
      for (std::size_t r = 2; r < parts.size(); ++r) add_to(mine, part(r), n);
    } else {
      std::copy_n(part(0), n, sum.data());
      for (std::size_t r = 1; r < parts.size(); ++r) add_to(sum.data(), part(r), n);
      std::copy_n(sum.data(), n, mine);
    }
  }
}

}  // namespace recua::collective
