#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/random.h"

namespace recua::sampling {
namespace {

bool has_penalties(const SamplingParams& params) {
  return params.repeat_last_n != 0 &&
         (params.repeat_penalty != 1.0F || params.frequency_penalty != 0.0F ||
          params.presence_penalty != 0.0F);
}

float max_logit(std::span<const Candidate> candidates) {
  float max = -std::numeric_limits<float>::infinity();
  for (const Candidate& c : candidates) max = std::max(max, c.logit);
  return max;
}

double exp_weight(float logit, float max) {
  return std::exp(static_cast<double>(logit) - static_cast<double>(max));
}

}  // namespace

std::size_t candidates_needed(const SamplingParams& params, std::size_t vocab_size) {
  // A bias or a penalty may lift a token over others.
  if (!params.logit_bias.empty() || has_penalties(params)) return 0;
  if (!(params.temperature > 0.0F)) return 1;
  const bool filters = params.top_k > 0 && static_cast<std::size_t>(params.top_k) < vocab_size;
  return filters ? static_cast<std::size_t>(params.top_k) : 0;
}

Result<TokenId> Sampler::choose(std::span<const float> logits, std::span<const TokenId> history,
                                std::uint32_t position, const SamplingParams& params) {
  const std::span<const float> adjusted = adjust(logits, history, params);
  RECUA_ASSIGN_OR_RETURN(const Candidate best, largest(adjusted));
  if (!(params.temperature > 0.0F) || params.top_k == 1) return best.id;

  gather_candidates(adjusted, params);
  if (params.typical_p < 1.0F) keep_typical(static_cast<double>(params.typical_p));
  if (params.top_p < 1.0F) keep_top_p(static_cast<double>(params.top_p));
  if (params.min_p > 0.0F) keep_min_p(static_cast<double>(params.min_p));
  const std::uint64_t bits = mix(params.seed, params.choice, position);
  return draw(to_unit(bits), static_cast<double>(params.temperature));
}

std::span<const float> Sampler::adjust(std::span<const float> logits,
                                       std::span<const TokenId> history,
                                       const SamplingParams& params) {
  const bool penalties = has_penalties(params);
  if (params.logit_bias.empty() && !penalties) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  for (const LogitBias& bias : params.logit_bias) {
    adjusted_[static_cast<std::size_t>(bias.id)] += bias.bias;
  }
  if (!penalties) return adjusted_;

  const std::size_t n_last =
      params.repeat_last_n < 0
          ? history.size()
          : std::min(history.size(), static_cast<std::size_t>(params.repeat_last_n));
  const std::span<const TokenId> last = history.last(n_last);
  if (counts_.size() < logits.size()) counts_.resize(logits.size());
  for (const TokenId id : last) ++counts_[static_cast<std::size_t>(id)];
  for (const TokenId id : last) {
    std::uint32_t& count = counts_[static_cast<std::size_t>(id)];
    if (count == 0) continue;  // Done at an earlier place of the same token.
    float& logit = adjusted_[static_cast<std::size_t>(id)];
    logit = logit > 0.0F ? logit / params.repeat_penalty : logit * params.repeat_penalty;
    logit -= static_cast<float>(count) * params.frequency_penalty + params.presence_penalty;
    count = 0;
  }
  return adjusted_;
}

void Sampler::gather_candidates(std::span<const float> logits, const SamplingParams& params) {
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < logits.size()) {
    select_largest(logits, static_cast<std::size_t>(params.top_k), candidates_);
    sorted_ = true;
    return;
  }
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -std::numeric_limits<float>::infinity()) {
      candidates_.push_back({.id = static_cast<TokenId>(i), .logit = logits[i]});
    }
  }
  sorted_ = false;
}

// Keeps the tokens whose surprise -log p is nearest to its mean, the entropy, until their
// probabilities reach typical_p.
void Sampler::keep_typical(double typical_p) {
  const float max = max_logit(candidates_);
  double sum = 0.0;
  for (const Candidate& c : candidates_) sum += exp_weight(c.logit, max);
  const double log_sum = static_cast<double>(max) + std::log(sum);
  double entropy = 0.0;
  for (const Candidate& c : candidates_) {
    const double logprob = static_cast<double>(c.logit) - log_sum;
    entropy -= std::exp(logprob) * logprob;
  }
  by_surprise_.clear();
  for (const Candidate& c : candidates_) {
    const double logprob = static_cast<double>(c.logit) - log_sum;
    by_surprise_.emplace_back(std::abs(-logprob - entropy), c);
  }
  std::sort(by_surprise_.begin(), by_surprise_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : ranks_before(a.second, b.second);
  });
  candidates_.clear();
  sorted_ = false;
  double kept = 0.0;
  for (const auto& [surprise, c] : by_surprise_) {
    candidates_.push_back(c);
    kept += std::exp(static_cast<double>(c.logit) - log_sum);
    if (kept >= typical_p) break;
  }
}

// Keeps the smallest set of most probable tokens whose probabilities reach top_p.
void Sampler::keep_top_p(double top_p) {
  const float max = max_logit(candidates_);
  double sum = 0.0;
  for (const Candidate& c : candidates_) sum += exp_weight(c.logit, max);
  // Usually a few hundred tokens hold the mass: rank so many first, and more only when needed.
  std::size_t n_ranked = sorted_ ? candidates_.size() : 0;
  std::size_t n_kept = 0;
  double kept = 0.0;
  while (n_kept < candidates_.size()) {
    if (n_kept == n_ranked) {
      n_ranked = std::min(candidates_.size(), std::max<std::size_t>(256, n_ranked * 8));
      const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(n_kept);
      const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(n_ranked);
      std::partial_sort(begin, end, candidates_.end(), ranks_before);
    }
    kept += exp_weight(candidates_[n_kept].logit, max);
    ++n_kept;
    if (kept >= top_p * sum) break;
  }
  candidates_.resize(n_kept);
  sorted_ = true;
}

// Keeps the tokens with at least min_p times the probability of the most probable one.
void Sampler::keep_min_p(double min_p) {
  const double least = static_cast<double>(max_logit(candidates_)) + std::log(min_p);
  std::erase_if(candidates_,
                [least](const Candidate& c) { return static_cast<double>(c.logit) < least; });
}

// The candidate in whose share of the sum of exp(logit / temperature) the number unit * sum lies.
TokenId Sampler::draw(double unit, double temperature) const {
  const float max = max_logit(candidates_);
  const auto weight = [&](const Candidate& c) {
    return std::exp((static_cast<double>(c.logit) - static_cast<double>(max)) / temperature);
  };
  double sum = 0.0;
  for (const Candidate& c : candidates_) sum += weight(c);
  const double target = unit * sum;
  double below = 0.0;
  TokenId last = candidates_.front().id;
  for (const Candidate& c : candidates_) {
    const double w = weight(c);
    if (w == 0.0) continue;
    below += w;
    last = c.id;  // Rounding may leave target at the very end of the sum.
    if (below > target) break;
  }
  return last;
}

}  // namespace recua::sampling
