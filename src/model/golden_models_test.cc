// Whole models against a float64 forward pass (tests/golden/models, tests/golden/random).
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "model/golden_logits.h"
#include "model/test_models.h"
#include "model/test_perplexity.h"
#include "model/vocab.h"

namespace recua::model {
namespace {

using nlohmann::json;

const sampling::SamplingParams kGreedy = {.temperature = 0.0F};

std::unique_ptr<LocalExecutor> load(compute::Device& device, const std::string& name,
                                    const SliceOptions& options) {
  auto executor = LocalExecutor::create(device, open_golden(name), options);
  EXPECT_TRUE(executor.ok()) << (executor.ok() ? "" : executor.error().message);
  return std::move(executor).value();
}

StepOutput last_output(LocalExecutor& executor, TestSequence& sequence, std::vector<TokenId> tokens,
                       OutputRequest request) {
  StepBatch batch;
  request.row = static_cast<std::uint32_t>(tokens.size()) - 1;
  batch.parts.push_back(sequence.next(std::move(tokens)));
  batch.outputs.push_back(std::move(request));
  auto result = run_awaitable(executor.step(std::move(batch)));
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result->outputs.at(0);
}

void expect_greedy_tokens(const std::string& expected_name, std::uint32_t n_ctx) {
  const json expected = read_golden_json("models/" + expected_name);
  const auto device = test_device(2);
  const auto executor = load(*device, "models/stories260K.gguf", exact_options(n_ctx));
  for (const json& run : expected["cases"]) {
    SCOPED_TRACE(run["prompt"].get<std::string>());
    TestSequence sequence;
    auto tokens = run["prompt_ids"].get<std::vector<TokenId>>();
    const auto wanted = run["greedy_ids"].get<std::vector<TokenId>>();
    std::vector<TokenId> got;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const StepOutput out = last_output(*executor, sequence, tokens, {.sampling = kGreedy});
      // The reference is float64: float sums over 64 to 172 terms and 5 layers stay within 1e-3.
      EXPECT_NEAR(out.logprob, run["logprobs"][i].get<float>(), 1e-3F) << "token " << i;
      got.push_back(out.id);
      tokens = {out.id};
    }
    EXPECT_EQ(got, wanted);
    StepBatch free;
    free.ops.push_back({.kind = SequenceOp::Kind::kFree, .seq = sequence.seq});
    EXPECT_TRUE(run_awaitable(executor->step(std::move(free))).ok());
  }
}

TEST(Stories260K, GivesTheExpectedGreedyTokens) {
  expect_greedy_tokens("stories260K.expected.json", 512);
}

TEST(Stories260K, GivesTheExpectedLongRun) {
  expect_greedy_tokens("stories260K.long.expected.json", 512);
}

TEST(Stories260K, GivesTheExpectedLogits) {
  const json expected = read_golden_json("models/stories260K.expected.json");
  const auto device = test_device();
  const auto executor = load(*device, "models/stories260K.gguf", exact_options(256));
  SequenceId seq = 0;
  for (const json& run : expected["cases"]) {
    TestSequence sequence{.seq = seq, .first_page = seq};
    ++seq;
    StepBatch batch;
    const auto prompt = run["prompt_ids"].get<std::vector<TokenId>>();
    const json& top = run["top10_after_each_prompt_token"];
    for (std::uint32_t row = 0; row < top.size(); ++row) {
      batch.outputs.push_back({.row = row, .kind = OutputRequest::Kind::kLogits, .n_top = 10});
    }
    batch.parts.push_back(sequence.next(prompt));
    const auto result = executor->run(batch);
    ASSERT_TRUE(result.ok()) << result.error().message;
    for (std::size_t row = 0; row < top.size(); ++row) {
      for (std::size_t i = 0; i < 10; ++i) {
        const auto id = top[row][i]["id"].get<TokenId>();
        EXPECT_NEAR(result->outputs[row].logits[static_cast<std::size_t>(id)],
                    top[row][i]["logit"].get<float>(), 1e-3F);
        EXPECT_EQ(result->outputs[row].top[i].id, id);
      }
    }
  }
}

TEST(Stories260K, GivesTheExpectedPerplexity) {
  const json expected = read_golden_json("models/perplexity.json");
  const auto file = open_golden("models/stories260K.gguf");
  const auto tokenizer = load_tokenizer(*file);
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<TokenId> ids = tokenizer->encode(read_story(), {.add_bos = false});
  const auto device = test_device(2);
  for (const json& row : expected["results"]) {
    const auto n_ctx = row["ctx"].get<std::uint32_t>();
    ASSERT_EQ(ids.size(), row["tokens"].get<std::size_t>());
    // 48 rows of outputs at most: the windows are cut for this too.
    SliceOptions options = exact_options(n_ctx);
    options.n_logit_rows = 48;
    const auto executor = load(*device, "models/stories260K.gguf", options);
    EXPECT_NEAR(perplexity(*executor, ids, *tokenizer->bos(), n_ctx), row["ppl"].get<double>(),
                0.001 * row["ppl"].get<double>())
        << "context " << n_ctx;
  }
}

TEST(RandomModels, AgreeWithTheFloat64Pass) {
  const auto device = test_device(2);
  for (const RandomModel& model : random_models()) {
    SCOPED_TRACE(model.name);
    const auto executor = load(*device, "random/" + model.name, exact_options(64));
    TestSequence sequence;
    StepBatch batch;
    const auto prompt = model.expected["prompt_ids"].get<std::vector<TokenId>>();
    for (std::uint32_t row = 0; row < prompt.size(); ++row) {
      batch.outputs.push_back({.row = row, .kind = OutputRequest::Kind::kLogits});
    }
    batch.parts.push_back(sequence.next(prompt));
    const auto result = executor->run(batch);
    ASSERT_TRUE(result.ok()) << result.error().message;

    const Difference last =
        compare(result->outputs.back().logits, model.expected["logits_after_last_token"]);
    RecordProperty(model.name,
                   fmt::format("top {:.5f} all {:.5f} mean {:.5f}", last.top, last.all, last.mean));
    EXPECT_LE(last.top, tolerance(model.name));
    EXPECT_LE(last.all, 2 * tolerance(model.name));
    EXPECT_LE(last.mean, tolerance(model.name) / 2);

    // Logits of the five best after each token, their common offset taken out.
    for (std::size_t row = 0; row < prompt.size(); ++row) {
      const json& top = model.expected["top5_after_each_token"][row];
      const auto& logits = result->outputs[row].logits;
      const auto logit_of = [&](const json& entry) {
        return static_cast<double>(logits[entry["id"].get<std::size_t>()]);
      };
      for (const json& entry : top) {
        const double wanted_gap = top[0]["logit"].get<double>() - entry["logit"].get<double>();
        EXPECT_NEAR(logit_of(top[0]) - logit_of(entry), wanted_gap, 4 * tolerance(model.name))
            << "row " << row;
      }
    }
  }
}

TEST(RandomModels, AgreeWithAnF16Cache) {
  const auto device = test_device();
  for (const RandomModel& model : random_models()) {
    SCOPED_TRACE(model.name);
    const SliceOptions options = {.n_ctx = 64};
    const auto executor = load(*device, "random/" + model.name, options);
    TestSequence sequence;
    const StepOutput out =
        last_output(*executor, sequence, model.expected["prompt_ids"].get<std::vector<TokenId>>(),
                    {.kind = OutputRequest::Kind::kLogits});
    const Difference last = compare(out.logits, model.expected["logits_after_last_token"]);
    EXPECT_LE(last.top, tolerance(model.name) + 0.03);
  }
}

}  // namespace
}  // namespace recua::model
