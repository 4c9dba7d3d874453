// Outputs from what three ranks know of a row, against the same row as a whole.
#include "model/split_outputs.h"

#include <cmath>
#include <functional>
#include <limits>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "model/test_group.h"

namespace recua::model {
namespace {

constexpr std::uint32_t kVocab = 300;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Kind = OutputRequest::Kind;

std::vector<Share> three_shares() {
  std::vector<Share> shares(3);
  shares[0].vocab = {0, 100};
  shares[1].vocab = {100, 101};
  shares[2].vocab = {101, kVocab};
  return shares;
}

struct Outcome {
  std::optional<Result<bool>> exchanged;
  std::vector<StepOutput> outputs;
};

/// What each rank makes of the rows.
std::vector<Outcome> run_ranks(const std::vector<OutputRequest>& requests,
                               const std::vector<std::vector<float>>& rows,
                               const std::vector<TokenId>& history) {
  const std::vector<Share> shares = three_shares();
  TestGroup group(3, {});
  std::vector<Outcome> out(3);
  const auto rank = [&](std::uint32_t r) {
    const auto device = test_device();
    const std::size_t n_own = shares[r].vocab.size();
    const auto buffer = device->allocate(rows.size() * n_own * sizeof(float)).value();
    const compute::Rows own = compute::dense_rows(*buffer, rows.size(), n_own);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(rows[i].data() + shares[r].vocab.begin, n_own, own.row(i));
    }
    SplitOutputs split(shares, kVocab, group.rank(r));
    OutputMaker maker;
    // Twice: the second time what the first left behind must not show.
    for (int round = 0; round < 2; ++round) {
      out[r].outputs.clear();
      out[r].exchanged = split.exchange(requests, own);
      if (!out[r].exchanged->ok() || !**out[r].exchanged) return;
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const SplitOutputs::Row row = split.row(requests[i], i);
        auto made = maker.make(requests[i], row.logits, row.summary, history);
        EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
        if (made.ok()) out[r].outputs.push_back(std::move(made).value());
      }
    }
  };
  std::vector<std::jthread> threads;
  for (std::uint32_t r = 0; r < 3; ++r) threads.emplace_back(rank, r);
  return out;
}

std::vector<OutputRequest> all_requests() {
  return {{.kind = Kind::kScore, .target = 7, .n_top = 5},
          {.kind = Kind::kScore, .target = 100},
          {.kind = Kind::kScore, .target = 299, .n_top = kVocab},
          {.n_top = 3, .sampling = {.temperature = 0.0F}},
          {.sampling = {.temperature = 1.5F, .top_k = 1}},
          {.sampling = {.temperature = 0.9F, .top_k = 40, .seed = 3}},
          {.n_top = 60, .sampling = {.temperature = 2.0F, .top_k = 50, .top_p = 0.8F, .seed = 4}},
          {.sampling = {.temperature = 2.0F, .top_k = 200, .min_p = 0.0F, .typical_p = 0.7F}}};
}

std::vector<float> random_row(Rng& rng, float spread) {
  std::vector<float> row(kVocab);
  for (float& logit : row) logit = spread * static_cast<float>(rng.normal());
  return row;
}

TEST(SplitOutputs, AreThoseOfTheWholeRow) {
  Rng rng(21);
  for (int round = 0; round < 30; ++round) {
    SCOPED_TRACE(round);
    const auto requests = all_requests();
    std::vector<std::vector<float>> rows;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      rows.push_back(random_row(rng, round % 3 == 0 ? 0.1F : 4.0F));
      if (round % 3 == 1) {
        for (float& logit : rows.back()) logit = std::round(logit);  // Ties, also between ranks.
      }
      if (round % 3 == 2) {
        for (std::size_t j = 0; j < 60; ++j) rows.back()[rng.below(100)] = -kInfinity;
      }
    }
    const std::vector<TokenId> history = {1, 2, static_cast<TokenId>(round)};
    const auto outcomes = run_ranks(requests, rows, history);
    OutputMaker whole;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(fmt::format("request {}", i));
      const auto summary = summarize(rows[i]);
      ASSERT_TRUE(summary.ok());
      const auto wanted = whole.make(requests[i], rows[i], *summary, history);
      ASSERT_TRUE(wanted.ok());
      if (requests[i].kind == Kind::kSample) {
        const auto chosen = sampling::Sampler().choose(rows[i], history, 2, requests[i].sampling);
        EXPECT_EQ(wanted->id, *chosen);
      }
      for (const Outcome& rank : outcomes) {
        ASSERT_TRUE(rank.exchanged->ok());
        ASSERT_TRUE(**rank.exchanged);
        const StepOutput& got = rank.outputs[i];
        EXPECT_EQ(got.id, wanted->id);
        // The sum is that of three sums; a logprob is a float below 2^5.
        if (std::isfinite(wanted->logprob)) {
          EXPECT_NEAR(got.logprob, wanted->logprob, 4e-6);
        } else {
          EXPECT_EQ(got.logprob, wanted->logprob);
        }
        ASSERT_EQ(got.top.size(), wanted->top.size());
        for (std::size_t t = 0; t < got.top.size(); ++t) {
          EXPECT_EQ(got.top[t].id, wanted->top[t].id);
          EXPECT_NEAR(got.top[t].logprob, wanted->top[t].logprob, 4e-6);
        }
        EXPECT_EQ(got.logprob, outcomes[0].outputs[i].logprob) << "ranks differ";
      }
    }
  }
}

void expect_no_exchange(const std::vector<OutputRequest>& requests,
                        const std::vector<std::vector<float>>& rows) {
  for (const Outcome& rank : run_ranks(requests, rows, {1})) {
    ASSERT_TRUE(rank.exchanged->ok());
    EXPECT_FALSE(**rank.exchanged);
  }
}

TEST(SplitOutputs, AreNotMadeWhenARequestLooksAtAnyLogit) {
  Rng rng(22);
  const std::vector<OutputRequest> others = {
      {.kind = Kind::kLogits},
      {.sampling = {.top_k = 0}},
      {.sampling = {.top_k = static_cast<std::int32_t>(kVocab)}},
      {.sampling = {.temperature = 0.0F, .logit_bias = {{3, 1.0F}}}},
      {.sampling = {.temperature = 0.0F, .repeat_penalty = 1.1F}}};
  for (const OutputRequest& other : others) {
    std::vector<OutputRequest> requests = all_requests();
    requests.push_back(other);
    std::vector<std::vector<float>> rows;
    for (std::size_t i = 0; i < requests.size(); ++i) rows.push_back(random_row(rng, 1.0F));
    expect_no_exchange(requests, rows);
  }
}

// The error is then made from all logits, and names the token.
TEST(SplitOutputs, AreNotMadeFromLogitsThatAreNoNumbers) {
  Rng rng(23);
  for (const float bad : {std::nanf(""), kInfinity}) {
    for (const std::size_t at : {0U, 100U, 299U}) {
      std::vector<float> row = random_row(rng, 1.0F);
      row[at] = bad;
      expect_no_exchange({{.kind = Kind::kScore, .target = 1}}, {row});
    }
  }
}

/// Says what it is told to say, as a broken or hostile rank might.
class Liar final : public Communicator {
 public:
  explicit Liar(std::function<void(std::span<float>)> spoil) : spoil_(std::move(spoil)) {}
  [[nodiscard]] std::uint32_t rank() const override { return 0; }
  [[nodiscard]] std::uint32_t n_ranks() const override { return 3; }
  Result<void> all_reduce(std::span<float>) override { return ok(); }
  Result<void> broadcast(std::span<float>, std::uint32_t) override { return ok(); }
  Result<void> barrier() override { return ok(); }
  Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t>,
                          std::span<float> out) override {
    for (std::size_t r = 0; r < 3; ++r) {
      std::copy(mine.begin(), mine.end(),
                out.begin() + static_cast<std::ptrdiff_t>(r * mine.size()));
      out[r * mine.size() + 5] = static_cast<float>(three_shares()[r].vocab.begin);
    }
    spoil_(out.last(mine.size()));
    return ok();
  }

 private:
  std::function<void(std::span<float>)> spoil_;
};

TEST(SplitOutputs, BoundWhatAnotherRankSays) {
  Rng rng(24);
  const auto device = test_device();
  const auto shares = three_shares();
  const auto buffer = device->allocate(100 * sizeof(float)).value();
  const compute::Rows own = compute::dense_rows(*buffer, 1, 100);
  std::copy_n(random_row(rng, 1.0F).data(), 100, own.row(0));
  const std::vector<OutputRequest> requests = {{.sampling = {.temperature = 0.0F}}};
  // max, log_sum * 3, target, id, logit
  const std::vector<std::function<void(std::span<float>)>> lies = {
      [](auto said) { said[5] = 100.0F; },        [](auto said) { said[5] = 300.0F; },
      [](auto said) { said[5] = 1e30F; },         [](auto said) { said[5] = -1.0F; },
      [](auto said) { said[5] = std::nanf(""); }, [](auto said) { said[6] += 1.0F; },
      [](auto said) { said[6] = std::nanf(""); }, [](auto said) { said[4] = std::nanf(""); },
      [](auto said) { said[1] = kInfinity; }};
  Liar honest([](auto) {});
  SplitOutputs sound(shares, kVocab, honest);
  const auto good = sound.exchange(requests, own);
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_TRUE(*good);
  for (std::size_t i = 0; i < lies.size(); ++i) {
    Liar liar(lies[i]);
    SplitOutputs split(shares, kVocab, liar);
    const auto exchanged = split.exchange(requests, own);
    ASSERT_FALSE(exchanged.ok()) << "lie " << i;
    EXPECT_EQ(exchanged.error().code, ErrorCode::kProtocol);
    EXPECT_NE(exchanged.error().message.find("rank 2"), std::string::npos);
  }
}

}  // namespace
}  // namespace recua::model
