#include "collective/sums.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace recua::collective {
namespace {

/// What is summed while it stays in the nearest cache.
constexpr std::size_t kBlock = 1024;

void add_to(float* __restrict sum, const float* __restrict more, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
}

}  // namespace

void sum_in_rank_order(std::span<const float* const> parts, std::size_t own,
                       std::span<float> values) {
  RECUA_DCHECK(own < parts.size());
  if (parts.size() == 1) return;
  // Among the first two ranks the own values can be added to where they are: a + b is b + a.
  if (own < 2) {
    for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
      const std::size_t n = std::min(kBlock, values.size() - begin);
      add_to(values.data() + begin, parts[1 - own] + begin, n);
      for (std::size_t r = 2; r < parts.size(); ++r)
        add_to(values.data() + begin, parts[r] + begin, n);
    }
    return;
  }
  std::array<float, kBlock> sum;
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::size_t n = std::min(kBlock, values.size() - begin);
    std::copy_n(parts[0] + begin, n, sum.begin());
    for (std::size_t r = 1; r < parts.size(); ++r) {
      add_to(sum.data(), (r == own ? values.data() : parts[r]) + begin, n);
    }
    std::copy_n(sum.begin(), n, values.data() + begin);
  }
}

}  // namespace recua::collective
