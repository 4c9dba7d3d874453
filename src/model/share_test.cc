// Dividing a model over ranks: laws that hold for any model and speeds, known cases, bad input.
#include "model/share.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "model/hyperparams.h"
#include "model/slice.h"

namespace recua::model {
namespace {

HyperParams shape(std::uint32_t n_heads, std::uint32_t n_kv_heads, std::uint32_t ffn_size,
                  std::uint32_t vocab_size) {
  HyperParams hp;
  hp.n_heads = n_heads;
  hp.n_kv_heads = n_kv_heads;
  hp.ffn_size = ffn_size;
  hp.vocab_size = vocab_size;
  return hp;
}

std::vector<std::uint32_t> sizes(const std::vector<Share>& shares, Range Share::* part) {
  std::vector<std::uint32_t> out;
  for (const Share& share : shares) out.push_back((share.*part).size());
  return out;
}

std::vector<Share> divided(const HyperParams& hp, const std::vector<double>& speeds) {
  auto shares = divide(hp, speeds);
  EXPECT_TRUE(shares.ok()) << (shares.ok() ? "" : shares.error().message);
  return shares.ok() ? std::move(shares).value() : std::vector<Share>();
}

using Sizes = std::vector<std::uint32_t>;

TEST(Divide, GivesOneRankEverything) {
  const HyperParams hp = shape(32, 8, 14336, 128256);
  EXPECT_EQ(divided(hp, {7.0}), std::vector<Share>{whole_share(hp)});
}

TEST(Divide, CutsEvenlyBetweenGroupsOfHeadsAndBlocksOfColumns) {
  const auto shares = divided(shape(32, 8, 11008, 32000), {1, 1});
  EXPECT_EQ(sizes(shares, &Share::heads), (Sizes{16, 16}));
  EXPECT_EQ(sizes(shares, &Share::kv_heads), (Sizes{4, 4}));
  EXPECT_EQ(sizes(shares, &Share::ffn), (Sizes{22 * 256, 21 * 256}));
  EXPECT_EQ(sizes(shares, &Share::vocab), (Sizes{16000, 16000}));
}

TEST(Divide, FollowsUnevenSpeeds) {
  const auto shares = divided(shape(24, 24, 6000, 3072), {2, 1});
  EXPECT_EQ(sizes(shares, &Share::heads), (Sizes{16, 8}));
  EXPECT_EQ(sizes(shares, &Share::kv_heads), (Sizes{16, 8}));
  EXPECT_EQ(sizes(shares, &Share::vocab), (Sizes{2048, 1024}));
  EXPECT_NEAR(shares[0].ffn.size(), 4000, 128);
}

TEST(Divide, CutsWithinAGroupWhenWholeGroupsWouldIgnoreTheSpeeds) {
  // Two groups of seven: a group each would leave the fast rank idle half of the time.
  const auto shares = divided(shape(14, 2, 4864, 151936), {2, 1});
  EXPECT_EQ(shares[0].heads, (Range{0, 10}));
  EXPECT_EQ(shares[0].kv_heads, (Range{0, 2}));
  EXPECT_EQ(shares[1].heads, (Range{10, 14}));
  EXPECT_EQ(shares[1].kv_heads, (Range{1, 2}));
}

TEST(Divide, ReplicatesKvHeadsWhenThereAreMoreRanks) {
  const auto shares = divided(shape(8, 2, 1024, 512), {1, 1, 1});
  EXPECT_EQ(sizes(shares, &Share::heads), (Sizes{3, 3, 2}));
  EXPECT_EQ(shares[0].kv_heads, (Range{0, 1}));
  EXPECT_EQ(shares[1].kv_heads, (Range{0, 2}));
  EXPECT_EQ(shares[2].kv_heads, (Range{1, 2}));
}

TEST(Divide, GivesEachOfManyRanksAHead) {
  const auto shares = divided(shape(8, 1, 64, 512), std::vector<double>(8, 1.0));
  EXPECT_EQ(sizes(shares, &Share::heads), Sizes(8, 1));
  EXPECT_EQ(sizes(shares, &Share::kv_heads), Sizes(8, 1));
  EXPECT_EQ(sizes(shares, &Share::ffn), Sizes(8, 8));
}

TEST(Divide, CutsExpertsByTheirOwnColumns) {
  HyperParams hp = shape(8, 4, 0, 320);
  hp.n_experts = 4;
  hp.n_experts_used = 2;
  hp.expert_ffn_size = 96;
  EXPECT_EQ(sizes(divided(hp, {1, 1}), &Share::ffn), (Sizes{48, 48}));
}

// No rank would be done sooner by giving its last unit to another: the slowest is as fast as can
// be.
void expect_best(const std::vector<Share>& shares, Range Share::* part, std::uint32_t unit,
                 const std::vector<double>& speeds) {
  for (std::size_t r = 0; r < shares.size(); ++r) {
    const std::uint32_t size = (shares[r].*part).size();
    for (std::size_t s = 0; size > unit && s < shares.size(); ++s) {
      // A last unit may be short, so its rank may have one more.
      const double other = ((shares[s].*part).size() + 2.0 * unit) / speeds[s];
      EXPECT_LE(size / speeds[r], other * (1 + 1e-9)) << "rank " << r << " beside " << s;
    }
  }
}

TEST(Divide, PartitionsAnyModelAsTheSpeedsSay) {
  Rng rng(11);
  for (int i = 0; i < 300; ++i) {
    const auto n_kv_heads = static_cast<std::uint32_t>(1 + rng.below(16));
    const auto n_heads = static_cast<std::uint32_t>(n_kv_heads * (1 + rng.below(8)));
    const HyperParams hp =
        shape(n_heads, n_kv_heads, static_cast<std::uint32_t>(n_heads + rng.below(30000)),
              static_cast<std::uint32_t>(n_heads + rng.below(200000)));
    std::vector<double> speeds(1 + rng.below(n_heads));
    for (double& speed : speeds) speed = std::exp(rng.normal());
    SCOPED_TRACE(fmt::format("{} heads, {} KV heads, {} columns, {} tokens, speeds {}", n_heads,
                             n_kv_heads, hp.ffn_size, hp.vocab_size, fmt::join(speeds, ",")));
    const auto shares = divided(hp, speeds);
    const auto n_ranks = static_cast<std::uint32_t>(speeds.size());
    ASSERT_EQ(shares.size(), n_ranks);
    const auto valid = check_shares(hp, n_ranks, shares);
    ASSERT_TRUE(valid.ok()) << valid.error().message;
    EXPECT_EQ(divided(hp, speeds), shares);
    expect_best(shares, &Share::vocab, 16, speeds);
    expect_best(shares, &Share::ffn, 256, speeds);
    expect_best(shares, &Share::heads, n_ranks > n_kv_heads ? 1 : n_heads / n_kv_heads, speeds);
  }
}

void expect_refused(const Result<std::vector<Share>>& result, const std::string& words) {
  ASSERT_FALSE(result.ok()) << "expected: " << words;
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
}

TEST(Divide, RefusesWhatCannotBe) {
  const HyperParams hp = shape(4, 2, 64, 512);
  expect_refused(divide(hp, std::vector<double>(5, 1.0)),
                 "over 5 ranks: the model has 4 query heads and each rank needs one at least, so 1 "
                 "to 4 ranks work");
  expect_refused(divide(shape(64, 8, 3, 512), std::vector<double>(4, 1.0)), "1 to 3 ranks work");
  expect_refused(divide(shape(64, 8, 64, 2), std::vector<double>(4, 1.0)), "1 to 2 ranks work");
  expect_refused(divide(hp, {}), "no speeds");
  for (const double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    expect_refused(divide(hp, std::vector<double>{1.0, bad}), "speed of rank 1");
  }
}

TEST(CheckShares, NamesWhatIsWrong) {
  const HyperParams hp = shape(8, 4, 256, 512);
  const std::vector<Share> good = divided(hp, {1, 1});
  ASSERT_TRUE(check_shares(hp, 2, good).ok());
  const auto refused = [&](const std::string& words, std::uint32_t n_ranks, auto&& spoil) {
    std::vector<Share> shares = good;
    spoil(shares);
    const auto result = check_shares(hp, n_ranks, shares);
    ASSERT_FALSE(result.ok()) << words;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
  };
  refused("2 shares for 3 ranks", 3, [](auto&) {});
  refused("0 shares for 2 ranks", 2, [](auto& s) { s.clear(); });
  refused("rank 1 has the query heads 5 to 8; expected them to begin at 4", 2,
          [](auto& s) { s[1].heads.begin = 5; });
  refused("rank 0 has the query heads 0 to 9", 2, [](auto& s) { s[0].heads.end = 9; });
  refused("rank 0 has the columns 0 to 0", 2, [](auto& s) { s[0].ffn.end = 0; });
  refused("rank 1 has the tokens 0 to 512", 2, [](auto& s) { s[1].vocab.begin = 0; });
  refused("rank 1 has the KV heads 1 to 4; its query heads 4 to 8 need 2 to 4", 2,
          [](auto& s) { s[1].kv_heads.begin = 1; });
  refused("ends with query head 8, column 256 and token 511; expected 8, 256 and 512", 2,
          [](auto& s) { s[1].vocab.end = 511; });
}

TEST(CheckSlice, NamesWhatIsWrong) {
  HyperParams hp = shape(8, 4, 256, 512);
  hp.n_layers = 4;
  const Slice good = {.layer_begin = 1,
                      .layer_end = 3,
                      .n_layers = 4,
                      .rank = 1,
                      .n_ranks = 2,
                      .shares = divided(hp, {1, 2})};
  ASSERT_TRUE(check_slice(good, hp).ok());
  EXPECT_EQ(own_share(good, hp), good.shares[1]);
  Slice unsplit = good;
  unsplit.rank = 0;
  unsplit.n_ranks = 1;
  unsplit.shares.clear();
  ASSERT_TRUE(check_slice(unsplit, hp).ok());
  EXPECT_EQ(own_share(unsplit, hp), whole_share(hp));
  const auto refused = [&](const std::string& words, auto&& spoil) {
    Slice slice = good;
    spoil(slice);
    const auto result = check_slice(slice, hp);
    ASSERT_FALSE(result.ok()) << words;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
  };
  refused("layers 3 to 3 of 4", [](auto& s) { s.layer_begin = 3; });
  refused("layers 1 to 5 of 4", [](auto& s) { s.layer_end = 5; });
  refused("of 7", [](auto& s) { s.n_layers = 7; });
  refused("rank 2 of 2; expected a rank below 2", [](auto& s) { s.rank = 2; });
  refused("rank 1 of 0", [](auto& s) { s.n_ranks = 0; });
  refused("2 shares for 4 ranks", [](auto& s) { s.n_ranks = 4; });
  refused("0 shares for 2 ranks", [](auto& s) { s.shares.clear(); });
}

}  // namespace
}  // namespace recua::model
