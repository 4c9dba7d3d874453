#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "sampling/logit_passes.h"
#include "sampling/sampler.h"

namespace recua::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SamplingParams everything_off() {
  return {.temperature = 1.0F, .top_k = 0, .top_p = 1.0F, .min_p = 0.0F};
}

std::vector<float> random_logits(std::uint64_t seed, std::size_t n) {
  Rng rng(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(3.0 * rng.normal());
  return out;
}

// The tokens that ever come out, and how often, over many positions.
std::map<TokenId, int> draw_many(const std::vector<float>& logits, const SamplingParams& params,
                                 std::uint32_t n, std::span<const TokenId> history = {}) {
  Sampler sampler;
  std::map<TokenId, int> counts;
  for (std::uint32_t position = 0; position < n; ++position) {
    const Result<TokenId> id = sampler.choose(logits, history, position, params);
    EXPECT_TRUE(id.ok()) << id.error().message;
    if (id.ok()) ++counts[*id];
  }
  return counts;
}

std::set<TokenId> ids_of(const std::map<TokenId, int>& counts) {
  std::set<TokenId> out;
  for (const auto& [id, count] : counts) out.insert(id);
  return out;
}

TEST(Logits, LargestTakesTheLowestIdOfATie) {
  for (const std::size_t n : {1U, 5U, 16U, 17U, 100U, 4096U, 4097U, 9000U}) {
    std::vector<float> logits(n, 1.0F);
    EXPECT_EQ(*largest(logits), (Candidate{0, 1.0F}));
    logits[n - 1] = 2.0F;
    EXPECT_EQ(*largest(logits), (Candidate{static_cast<TokenId>(n - 1), 2.0F}));
  }
}

TEST(Logits, LargestRefusesWhatIsNoNumber) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const std::size_t at : {0U, 15U, 16U, 36U, 4096U, 8999U}) {
      std::vector<float> logits(at < 37 ? 37 : 9000, 0.5F);
      logits[at] = bad;
      const auto result = largest(logits);
      ASSERT_FALSE(result.ok());
      EXPECT_NE(result.error().message.find(fmt::format("token {}", at)), std::string::npos)
          << result.error().message;
    }
  }
  EXPECT_FALSE(largest(std::vector<float>(20, -kInfinity)).ok());
  EXPECT_FALSE(largest({}).ok());
}

TEST(Logits, PassesOfEveryInstructionSetGiveTheSameBits) {
  const std::span<const LogitPasses> all = logit_passes();
  if (all.size() == 1) GTEST_SKIP() << "this CPU has one set only";
  const LogitPasses& base = all.back();
  for (const std::size_t n : {1U, 15U, 255U, 256U, 257U, 5000U}) {
    std::vector<float> logits = random_logits(n, n);
    for (std::size_t i = 3; i < n; i += 11) logits[i] *= 20.0F;  // Some vanish beside the largest.
    if (n > 20) logits[17] = -kInfinity;
    const std::optional<float> max = base.max_below_infinity(logits);
    ASSERT_TRUE(max);
    for (const LogitPasses& passes : all) {
      SCOPED_TRACE(fmt::format("{}, {} logits", passes.instruction_set, n));
      EXPECT_EQ(passes.max_below_infinity(logits), max);
      EXPECT_EQ(passes.sum_of_exp(logits, *max), base.sum_of_exp(logits, *max));
    }
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
      for (const std::size_t at : {std::size_t{0}, n / 3, n / 2, n - 1}) {
        std::vector<float> damaged = logits;
        damaged[at] = bad;
        for (const LogitPasses& passes : all) {
          EXPECT_FALSE(passes.max_below_infinity(damaged)) << passes.instruction_set << ' ' << at;
        }
      }
    }
  }
}

TEST(Logits, LogSumExpMatchesDoubleArithmetic) {
  const std::vector<float> logits = random_logits(1, 5000);
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  // Each float exp is within 1e-7 relative, and so is their sum, and its logarithm absolutely.
  EXPECT_NEAR(log_sum_exp(logits, max), std::log(sum), 3e-7);
}

TEST(Logits, LogSumExpTakesLogitsOfAnySize) {
  // Each against one of 0, whose share is known: from as likely down to what vanishes beside it.
  for (float x = 0.0F; x > -120.0F; x -= 0.37F) {
    const float logits[] = {0.0F, x, -kInfinity};
    const double expected = std::log1p(std::exp(static_cast<double>(x)));
    EXPECT_NEAR(log_sum_exp(logits, 0.0F), expected, 2e-7 * expected + 3e-16) << x;
  }
  const float large[] = {1e38F, 1e38F, -1e38F};
  EXPECT_NEAR(log_sum_exp(large, 1e38F), static_cast<double>(1e38F), 1e30);
}

TEST(Logits, SelectLargestEqualsAFullSort) {
  Rng rng(2);
  std::vector<Candidate> got;
  for (int round = 0; round < 300; ++round) {
    const std::size_t size = 1 + rng.below(600);
    const std::size_t n = rng.below(size + 10);
    std::vector<float> logits(size);
    std::vector<Candidate> expected;
    for (std::size_t i = 0; i < size; ++i) {
      logits[i] = static_cast<float>(rng.below(40));  // Few values, so there are ties.
      expected.push_back({static_cast<TokenId>(i), logits[i]});
    }
    std::sort(expected.begin(), expected.end(), ranks_before);
    expected.resize(std::min(n, size));
    select_largest(logits, n, got);
    ASSERT_EQ(got, expected) << "round " << round;
  }
}

TEST(Sampler, IsGreedyAtTemperatureZero) {
  Sampler sampler;
  std::vector<float> logits = random_logits(3, 1000);
  logits[700] = 50.0F;
  logits[800] = 50.0F;
  for (const float temperature : {0.0F, -1.0F}) {
    EXPECT_EQ(*sampler.choose(logits, {}, 0, {.temperature = temperature}), 700);
  }
  EXPECT_EQ(*sampler.choose(logits, {}, 0, {.temperature = 5.0F, .top_k = 1}), 700);
}

TEST(Sampler, FollowsTheDistribution) {
  const std::vector<float> logits = {0.0F, 1.0F, 2.0F, -1.0F, 0.5F};
  for (const float temperature : {0.5F, 1.0F, 2.0F}) {
    SamplingParams params = everything_off();
    params.temperature = temperature;
    const std::uint32_t n = 40000;
    const auto counts = draw_many(logits, params, n);
    double sum = 0.0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x / temperature));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(static_cast<double>(logits[i] / temperature)) / sum;
      const double deviation = std::sqrt(p * (1 - p) / n);
      const auto found = counts.find(static_cast<TokenId>(i));
      const double share = found == counts.end() ? 0.0 : found->second / double{n};
      EXPECT_NEAR(share, p, 5 * deviation) << "token " << i << " temperature " << temperature;
    }
  }
}

TEST(Sampler, DependsOnlyOnSeedChoiceAndPosition) {
  const std::vector<float> logits = random_logits(4, 300);
  SamplingParams params = everything_off();
  params.seed = 99;
  Sampler used;
  std::ignore = used.choose(random_logits(5, 800), {}, 3, params);
  std::set<TokenId> over_seeds;
  std::set<TokenId> over_choices;
  std::set<TokenId> over_positions;
  for (std::uint32_t i = 0; i < 50; ++i) {
    Sampler fresh;
    EXPECT_EQ(*fresh.choose(logits, {}, i, params), *used.choose(logits, {}, i, params));
    over_positions.insert(*used.choose(logits, {}, i, params));
    SamplingParams other = params;
    other.seed = i;
    over_seeds.insert(*used.choose(logits, {}, 0, other));
    other = params;
    other.choice = i;
    over_choices.insert(*used.choose(logits, {}, 0, other));
  }
  EXPECT_GT(over_positions.size(), 5U);
  EXPECT_GT(over_seeds.size(), 5U);
  EXPECT_GT(over_choices.size(), 5U);
}

TEST(Sampler, TopKKeepsTheKMostProbable) {
  const std::vector<float> logits = {1.0F, 1.2F, 0.9F, 1.1F, 1.0F};
  SamplingParams params = everything_off();
  params.top_k = 3;
  // Tokens 0 and 4 tie for the last place: the lower id wins.
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)), (std::set<TokenId>{0, 1, 3}));
  params.top_k = 100;
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)).size(), 5U);
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesP) {
  std::vector<float> logits;
  for (const double p : {0.1, 0.4, 0.05, 0.3, 0.15}) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  SamplingParams params = everything_off();
  params.top_p = 0.69F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)), (std::set<TokenId>{1, 3}));
  params.top_p = 0.75F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)), (std::set<TokenId>{1, 3, 4}));
  params.top_p = 0.0F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 50)), (std::set<TokenId>{1}));
}

TEST(Sampler, TopPAgreesWithAndWithoutRankingFirst) {
  // top_k = size - 1 ranks all but one token first; its path must cut at the same place.
  Rng rng(6);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits = random_logits(100 + static_cast<std::uint64_t>(round), 3000);
    logits[17] = -100.0F;
    SamplingParams direct = everything_off();
    direct.top_p = static_cast<float>(rng.unit());
    SamplingParams ranked = direct;
    ranked.top_k = 2999;
    Sampler sampler;
    for (std::uint32_t i = 0; i < 20; ++i) {
      EXPECT_EQ(*sampler.choose(logits, {}, i, direct), *sampler.choose(logits, {}, i, ranked));
    }
  }
}

TEST(Sampler, MinPKeepsWhatIsNearTheMostProbable) {
  std::vector<float> logits;
  for (const double p : {0.1, 0.4, 0.05, 0.3, 0.15}) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  SamplingParams params = everything_off();
  params.min_p = 0.3F;  // 0.12 and above.
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)), (std::set<TokenId>{1, 3, 4}));
  params.min_p = 1.0F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 50)), (std::set<TokenId>{1}));
}

TEST(Sampler, TypicalKeepsWhatIsAsSurprisingAsTheMean) {
  // Entropy 1.28 nats = p 0.278: token 3 (0.3) is nearest, then 1 (0.4), then 4 (0.15).
  std::vector<float> logits;
  for (const double p : {0.1, 0.4, 0.05, 0.3, 0.15}) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  SamplingParams params = everything_off();
  params.typical_p = 0.2F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 100)), (std::set<TokenId>{3}));
  params.typical_p = 0.6F;
  EXPECT_EQ(ids_of(draw_many(logits, params, 500)), (std::set<TokenId>{1, 3}));
}

TEST(Sampler, PenaltiesLookAtTheLastTokensOnly) {
  const std::vector<float> logits = {2.0F, 1.9F, -1.0F};
  const std::vector<TokenId> history = {0, 1, 1, 2};
  Sampler sampler;
  SamplingParams params = {.temperature = 0.0F};
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
  params.repeat_penalty = 2.0F;
  params.repeat_last_n = 3;  // Token 0 is out of sight, token 1 is halved.
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
  params.repeat_last_n = -1;  // 1.0, 0.95.
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
  params.frequency_penalty = -0.5F;  // 1.0 + 0.5, 0.95 + 1.0: counted per occurrence.
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 1);
  params = {.temperature = 0.0F, .presence_penalty = 1.0F, .repeat_last_n = 2};
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
  params.presence_penalty = 4.0F;
  params.repeat_last_n = -1;  // -2, -2.1, -5: once per token, however often it occurs.
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
  params.repeat_last_n = 0;
  EXPECT_EQ(*sampler.choose(logits, history, 3, params), 0);
}

TEST(Sampler, RepeatPenaltyPushesNegativeLogitsDown) {
  const std::vector<float> logits = {-1.0F, -1.5F};
  const std::vector<TokenId> history = {0};
  Sampler sampler;
  const SamplingParams params = {.temperature = 0.0F, .repeat_penalty = 2.0F};
  EXPECT_EQ(*sampler.choose(logits, history, 0, params), 1);
}

TEST(Sampler, LogitBiasForbidsAndForces) {
  const std::vector<float> logits = {2.0F, 1.0F, 0.0F};
  Sampler sampler;
  SamplingParams params = {.temperature = 0.0F, .logit_bias = {{0, -kInfinity}}};
  EXPECT_EQ(*sampler.choose(logits, {}, 0, params), 1);
  params.logit_bias.push_back({2, 5.0F});
  EXPECT_EQ(*sampler.choose(logits, {}, 0, params), 2);
  params.logit_bias = {{0, -kInfinity}, {1, -kInfinity}, {2, -kInfinity}};
  EXPECT_FALSE(sampler.choose(logits, {}, 0, params).ok());
  SamplingParams off = everything_off();
  off.logit_bias = {{0, -kInfinity}};
  EXPECT_EQ(ids_of(draw_many(logits, off, 500)), (std::set<TokenId>{1, 2}));
}

TEST(Sampler, SurvivesExtremeLogitsAndTemperatures) {
  const std::vector<std::vector<float>> rows = {
      {3e38F, -3e38F, 0.0F}, {-3e38F, -kInfinity, -3e38F}, {0.0F, 1e-40F, -1e-40F}};
  Sampler sampler;
  for (const auto& logits : rows) {
    for (const float temperature : {1e-40F, 1.0F, 1e6F}) {
      for (const float typical_p : {0.5F, 1.0F}) {
        SamplingParams params = {.temperature = temperature, .typical_p = typical_p};
        const auto id = sampler.choose(logits, {}, 1, params);
        ASSERT_TRUE(id.ok());
        EXPECT_GT(logits[static_cast<std::size_t>(*id)], -kInfinity);
      }
    }
  }
}

// The others may be unknown: it chooses the same token without them.
TEST(CandidatesNeeded, AreEnoughToChoose) {
  Rng rng(31);
  std::size_t n_enough = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> logits(50);
    for (float& logit : logits) logit = std::round(4.0F * static_cast<float>(rng.normal()));
    SamplingParams params;
    params.temperature = rng.below(4) == 0 ? 0.0F : 1.5F;
    params.top_k = static_cast<std::int32_t>(rng.below(60));
    params.top_p = rng.below(2) == 0 ? 1.0F : 0.9F;
    params.min_p = rng.below(2) == 0 ? 0.0F : 0.05F;
    params.typical_p = rng.below(2) == 0 ? 1.0F : 0.8F;
    params.seed = rng.next();
    if (rng.below(4) == 0) params.logit_bias = {{static_cast<TokenId>(rng.below(50)), 9.0F}};
    if (rng.below(4) == 0) params.presence_penalty = 8.0F;
    const std::vector<TokenId> history = {static_cast<TokenId>(rng.below(50))};
    const std::size_t n = candidates_needed(params, logits.size());
    if (n == 0) continue;
    ++n_enough;
    std::vector<Candidate> largest;
    select_largest(logits, n, largest);
    std::vector<float> known(logits.size(), -kInfinity);
    for (const Candidate& c : largest) known[static_cast<std::size_t>(c.id)] = c.logit;
    Sampler sampler;
    const auto wanted = sampler.choose(logits, history, 5, params);
    const auto got = sampler.choose(known, history, 5, params);
    ASSERT_TRUE(wanted.ok());
    ASSERT_TRUE(got.ok());
    EXPECT_EQ(*got, *wanted) << "top_k " << params.top_k << " seed " << params.seed;
  }
  EXPECT_GT(n_enough, 500U);
  const SamplingParams defaults;
  EXPECT_EQ(candidates_needed(defaults, 1000), static_cast<std::size_t>(defaults.top_k));
}

TEST(Validate, TakesTheDefaults) { EXPECT_TRUE(validate({}, 10).ok()); }

TEST(Validate, NamesTheParameterThatIsWrong) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::pair<SamplingParams, std::string>> cases = {
      {{.temperature = nan}, "temperature"},
      {{.temperature = kInfinity}, "temperature"},
      {{.top_p = 1.5F}, "top_p"},
      {{.min_p = -0.1F}, "min_p"},
      {{.typical_p = nan}, "typical_p"},
      {{.repeat_penalty = 0.0F}, "repeat_penalty"},
      {{.frequency_penalty = kInfinity}, "frequency_penalty"},
      {{.presence_penalty = nan}, "presence_penalty"},
      {{.repeat_last_n = -2}, "repeat_last_n"},
      {{.logit_bias = {{10, 1.0F}}}, "token 10"},
      {{.logit_bias = {{-1, 1.0F}}}, "token -1"},
      {{.logit_bias = {{3, nan}}}, "token 3"},
      {{.logit_bias = {{3, kInfinity}}}, "token 3"},
      {{.logit_bias = std::vector<LogitBias>(11)}, "11 entries; at most 10"},
  };
  for (const auto& [params, words] : cases) {
    const auto result = validate(params, 10);
    ASSERT_FALSE(result.ok()) << words;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
  }
}

TEST(Validate, BoundsTheLogitBiases) {
  SamplingParams params;
  params.logit_bias.resize(kLogitBiasesMax);
  EXPECT_TRUE(validate(params, 100000).ok());
  params.logit_bias.emplace_back();
  const auto result = validate(params, 100000);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(result.error().message.find("1025 entries; at most 1024"), std::string::npos)
      << result.error().message;
}

TEST(Validate, WantsOneTokenLeft) {
  SamplingParams params = {.logit_bias = {{0, -kInfinity}, {2, -kInfinity}, {2, -kInfinity}}};
  EXPECT_TRUE(validate(params, 3).ok());  // Token 1 is left.
  params.logit_bias.back() = {1, 1.0F};
  EXPECT_TRUE(validate(params, 3).ok());
  params.logit_bias.back() = {1, -kInfinity};
  const auto result = validate(params, 3);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(result.error().message.find("the logit bias forbids every token"), std::string::npos)
      << result.error().message;
}

}  // namespace
}  // namespace recua::sampling
