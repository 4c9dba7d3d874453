#pragma once
/// Chooses the next token from logits.
///
/// Steps, in this order: logit bias; repeat, frequency and presence penalties over the last
/// repeat_last_n tokens; top_k; typical_p; top_p; min_p; temperature; one draw. Each filter sees
/// the distribution that the ones before it left, and always leaves at least one token. Temperature
/// 0 or below takes the largest logit after the penalties and skips the rest.
///
/// The draw depends only on (seed, choice, position), so an answer is the same alone or in a full
/// batch, on one machine or on many.
///
/// Source: Holtzman et al. 2020 (top_p), Meister et al. 2022 (typical), Nguyen et al. 2024 (min_p),
/// Keskar et al. 2019 (repeat penalty; here negative logits are multiplied, as others do).

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "sampling/logits.h"
#include "sampling/params.h"
#include "tokenizer/token.h"

namespace recua::sampling {

/// The most entries that logit_bias may have: they travel with every step.
inline constexpr std::size_t kLogitBiasesMax = 1024;

/// kInvalidArgument: names the parameter, its value and the range. Parameters come from requests
/// and peers; a Sampler takes only validated ones.
Result<void> validate(const SamplingParams& params, std::uint32_t vocab_size);

/// How many of the largest logits choose() looks at: with the others at -infinity it chooses the
/// same token. 0: it may look at any.
std::size_t candidates_needed(const SamplingParams& params, std::size_t vocab_size);

/// Working memory for choose(), kept between calls. Threads: one at a time.
class Sampler {
 public:
  /// The token that follows history, whose last token has this position.
  /// logits: [vocab_size]. history: ids in [0, vocab_size); the penalties look at its end.
  /// kCorrupt: a logit is NaN or +infinity, or nothing can be chosen.
  Result<TokenId> choose(std::span<const float> logits, std::span<const TokenId> history,
                         std::uint32_t position, const SamplingParams& params);

 private:
  std::span<const float> adjust(std::span<const float> logits, std::span<const TokenId> history,
                                const SamplingParams& params);
  void gather_candidates(std::span<const float> logits, const SamplingParams& params);
  void keep_typical(double typical_p);
  void keep_top_p(double top_p);
  void keep_min_p(double min_p);
  TokenId draw(double unit, double temperature) const;

  std::vector<float> adjusted_;
  std::vector<std::uint32_t> counts_;  // By token id; all zero between calls.
  std::vector<Candidate> candidates_;
  bool sorted_ = false;  // candidates_ are in their ranking.
  std::vector<std::pair<double, Candidate>> by_surprise_;
};

}  // namespace recua::sampling
