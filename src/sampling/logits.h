#pragma once
/// Facts about one row of logits: its softmax, and its largest entries.
///
/// Logits come from a device and a stranger's weights, so they may be anything: NaN and +infinity
/// are an error here, -infinity is a token that cannot be chosen. Threads: any; no state.

#include <cstddef>
#include <span>
#include <vector>

#include "base/result.h"
#include "tokenizer/token.h"

namespace recua::sampling {

struct Candidate {
  TokenId id = 0;
  float logit = 0.0F;

  friend bool operator==(const Candidate&, const Candidate&) = default;
};

/// The order of every ranking: larger logit first, ties by lower id.
constexpr bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

/// The largest logit, ties: the lowest id.
/// kCorrupt: a logit is NaN or +infinity (names the token), or all are -infinity, or there are
/// none.
Result<Candidate> largest(std::span<const float> logits);

/// log of the sum over i of exp(logits[i]), so that logprob(i) = logits[i] - log_sum. max is the
/// largest logit. exp in float (relative error 2e-7 each), the sum in double, in one
/// fixed order.
double log_sum_exp(std::span<const float> logits, float max);

/// The n largest logits in their ranking; fewer when fewer are above -infinity. logits hold no NaN.
/// Time: one pass with a bound that rises, about O(size + n log n); out is reused memory.
void select_largest(std::span<const float> logits, std::size_t n, std::vector<Candidate>& out);

}  // namespace recua::sampling
