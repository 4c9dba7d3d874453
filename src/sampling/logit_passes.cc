#include "sampling/logit_passes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

/// Becomes part of each of its callers, in the instructions that they may use.
#define RECUA_ANY_WIDTH [[gnu::always_inline]] inline

namespace recua::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

RECUA_ANY_WIDTH std::optional<float> max_pass(std::span<const float> values) {
  // Sixteen running maxima side by side, which the compiler keeps in vector registers; a flag in
  // each lane remembers a value that is not below +infinity.
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> lane_max;
  std::array<int, kLanes> lane_bad{};
  lane_max.fill(-kInfinity);
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float x = values[i + j];
      lane_max[j] = x > lane_max[j] ? x : lane_max[j];
      lane_bad[j] |= x < kInfinity ? 0 : 1;
    }
  }
  for (; i < values.size(); ++i) {
    lane_max[0] = std::max(lane_max[0], values[i]);
    lane_bad[0] |= values[i] < kInfinity ? 0 : 1;
  }
  float max = -kInfinity;
  int bad = 0;
  for (std::size_t j = 0; j < kLanes; ++j) {
    max = std::max(max, lane_max[j]);
    bad |= lane_bad[j];
  }
  if (bad != 0) return std::nullopt;
  return max;
}

// exp(x) for x <= 0, within 2e-7 of it: 2^n times a polynomial of the rest, without a branch or a
// call, so that the compiler works on several at once. Below -87 it is e^-87, which is lost in any
// sum with 1.
RECUA_ANY_WIDTH float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: what is added to it loses its fraction.
  constexpr float kLog2E = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;  // So few bits that its products with n are exact.
  constexpr float kLn2Low = -2.12194440e-4F;
  const float bounded = std::max(x, -87.0F);
  const float rounded = bounded * kLog2E + kRound;
  const float n = rounded - kRound;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float p = 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * (r * r) + r + 1.0F;
  const auto exponent = (std::bit_cast<std::int32_t>(rounded) << 23) + (127 << 23);
  return p * std::bit_cast<float>(exponent);
}

RECUA_ANY_WIDTH double sum_pass(std::span<const float> logits, float max) {
  // A block at a time, long enough for the compiler to use vectors.
  constexpr std::size_t kBlock = 256;
  constexpr std::size_t kLanes = 8;
  std::array<float, kBlock> block;
  std::array<double, kLanes> sums{};
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::span<const float> part =
        logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    if (part.size() < kBlock) block.fill(0.0F);
    for (std::size_t i = 0; i < part.size(); ++i) block[i] = exp_of_negative(part[i] - max);
    for (std::size_t i = 0; i < kBlock; i += kLanes) {
      for (std::size_t j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(block[i + j]);
    }
  }
  double sum = 0.0;
  for (const double lane : sums) sum += lane;
  return sum;
}

std::optional<float> max_of_base(std::span<const float> values) { return max_pass(values); }
double sum_of_base(std::span<const float> logits, float max) { return sum_pass(logits, max); }
constexpr LogitPasses kBase = {"base", max_of_base, sum_of_base};

#if defined(__x86_64__)
[[gnu::target("avx2")]] std::optional<float> max_of_avx2(std::span<const float> values) {
  return max_pass(values);
}
[[gnu::target("avx2")]] double sum_of_avx2(std::span<const float> logits, float max) {
  return sum_pass(logits, max);
}
[[gnu::target("avx512f,avx512dq")]] std::optional<float> max_of_avx512(
    std::span<const float> values) {
  return max_pass(values);
}
[[gnu::target("avx512f,avx512dq")]] double sum_of_avx512(std::span<const float> logits, float max) {
  return sum_pass(logits, max);
}
constexpr std::array kAll = {LogitPasses{"avx512", max_of_avx512, sum_of_avx512},
                             LogitPasses{"avx2", max_of_avx2, sum_of_avx2}, kBase};

std::size_t n_missing() {
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0) return 0;
  return __builtin_cpu_supports("avx2") != 0 ? 1 : 2;
}
#else
constexpr std::array kAll = {kBase};

std::size_t n_missing() { return 0; }
#endif

}  // namespace

std::span<const LogitPasses> logit_passes() {
  static const std::size_t n = n_missing();
  return std::span(kAll).subspan(n);
}

}  // namespace recua::sampling
