#include "sampling/logits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <fmt/format.h>

namespace recua::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Error bad_logits(std::span<const float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < kInfinity)) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("the model gave the logit {} to token {}; expected a finite number: "
                               "its weights or its type are damaged",
                               logits[i], i)};
    }
  }
  return Error{ErrorCode::kCorrupt, fmt::format("none of the {} tokens can be chosen: every logit "
                                                "is -infinity, perhaps by the logit bias",
                                                logits.size())};
}

// The largest value; nothing when one is not below +infinity.
std::optional<float> max_below_infinity(std::span<const float> values) {
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
float exp_of_negative(float x) {
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

}  // namespace

Result<Candidate> largest(std::span<const float> logits) {
  // A block at a time: only the first one with the largest value is searched for its place.
  constexpr std::size_t kBlock = 4096;
  float max = -kInfinity;
  std::span<const float> best;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::span<const float> block =
        logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    const std::optional<float> largest_here = max_below_infinity(block);
    if (!largest_here) return bad_logits(logits);
    if (*largest_here > max) {
      max = *largest_here;
      best = block;
    }
  }
  if (best.empty()) return bad_logits(logits);
  const float* const at = std::find(best.data(), best.data() + best.size(), max);
  return Candidate{.id = static_cast<TokenId>(at - logits.data()), .logit = max};
}

double log_sum_exp(std::span<const float> logits, float max) {
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
  return static_cast<double>(max) + std::log(sum);
}

void select_largest(std::span<const float> logits, std::size_t n, std::vector<Candidate>& out) {
  out.clear();
  if (n == 0) return;
  // Candidates above the bound gather until there are twice as many as wanted; then the better half
  // stays and its worst becomes the bound. Ids ascend, so a later equal logit never ranks higher.
  const std::size_t gather_max = std::max<std::size_t>(2 * n, 64);
  float bound = -kInfinity;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > bound)) continue;
    out.push_back({.id = static_cast<TokenId>(i), .logit = logits[i]});
    if (out.size() == gather_max) {
      const auto last = out.begin() + static_cast<std::ptrdiff_t>(n - 1);
      std::nth_element(out.begin(), last, out.end(), ranks_before);
      bound = last->logit;
      out.resize(n);
    }
  }
  std::sort(out.begin(), out.end(), ranks_before);
  if (out.size() > n) out.resize(n);
}

}  // namespace recua::sampling
