#include "sampling/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "sampling/logit_passes.h"

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
  // A block at a time: only the first one with the largest value is searched for its place.
  constexpr std::size_t kBlock = 4096;
  const LogitPasses& passes = logit_passes().front();
  float max = -kInfinity;
  std::span<const float> best;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::span<const float> block =
        logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    const std::optional<float> largest_here = passes.max_below_infinity(block);
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
  return static_cast<double>(max) + std::log(logit_passes().front().sum_of_exp(logits, max));
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
