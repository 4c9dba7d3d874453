#include "sampling/logits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

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

}  // namespace

Result<Candidate> largest(std::span<const float> logits) {
  // Sixteen running maxima side by side, which the compiler keeps in vector registers; a flag in
  // each lane remembers a value that is not below +infinity.
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> lane_max;
  std::array<int, kLanes> lane_bad{};
  lane_max.fill(-kInfinity);
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float x = logits[i + j];
      lane_max[j] = x > lane_max[j] ? x : lane_max[j];
      lane_bad[j] |= x < kInfinity ? 0 : 1;
    }
  }
  for (; i < logits.size(); ++i) {
    lane_max[0] = std::max(lane_max[0], logits[i]);
    lane_bad[0] |= logits[i] < kInfinity ? 0 : 1;
  }
  float max = -kInfinity;
  int bad = 0;
  for (std::size_t j = 0; j < kLanes; ++j) {
    max = std::max(max, lane_max[j]);
    bad |= lane_bad[j];
  }
  if (bad != 0 || max == -kInfinity) return bad_logits(logits);
  const auto at = std::find(logits.begin(), logits.end(), max);
  return Candidate{.id = static_cast<TokenId>(at - logits.begin()), .logit = max};
}

double log_sum_exp(std::span<const float> logits, float max) {
  double sum = 0.0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - max));
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
