// The engine on a real model: many requests at once, with too few pages for all of them, give the
// tokens that each gives alone. The reference tokens were made by other programs (see
// tests/golden/models/README.md); their smallest margin needs the cache in f32.

#include <fstream>
#include <memory>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compute/cpu/cpu_device.h"
#include "engine/engine.h"
#include "gguf/gguf_file.h"
#include "model/local_executor.h"
#include "net/sim/sim_loop.h"

namespace recua::engine {
namespace {

struct Case {
  std::vector<TokenId> prompt;
  std::vector<TokenId> expected;
  std::vector<TokenId> got;
  std::vector<float> logprobs;
  std::optional<Finish> finish;
};

std::vector<Case> read_cases(nlohmann::json& reference) {
  std::ifstream file(RECUA_GOLDEN_DIR "/models/stories260K.expected.json");
  reference = nlohmann::json::parse(file);
  std::vector<Case> cases;
  for (const auto& one : reference["cases"]) {
    cases.push_back({.prompt = one["prompt_ids"].get<std::vector<TokenId>>(),
                     .expected = one["greedy_ids"].get<std::vector<TokenId>>(),
                     .got = {},
                     .logprobs = {},
                     .finish = std::nullopt});
  }
  return cases;
}

void generate_together(std::uint32_t n_pages, std::uint32_t n_batch) {
  nlohmann::json reference;
  std::vector<Case> cases = read_cases(reference);
  ASSERT_EQ(cases.size(), 8U);
  auto file = gguf::GgufFile::open(RECUA_GOLDEN_DIR "/models/stories260K.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  auto device = compute::make_cpu_device({.n_threads = 1});
  ASSERT_TRUE(device.ok()) << device.error().message;
  model::SliceOptions options;
  options.n_ctx = 128;
  options.n_pages = n_pages;
  options.page_tokens = 16;
  options.n_ubatch = 7;
  options.k_type = quant::DataType::kF32;
  options.v_type = quant::DataType::kF32;
  auto executor = model::LocalExecutor::create(
      **device, std::make_shared<gguf::GgufFile>(std::move(file).value()), options, {}, n_batch);
  ASSERT_TRUE(executor.ok()) << executor.error().message;

  net::SimLoop loop;
  Engine engine(loop.executor(), loop, **executor);
  for (Case& one : cases) {
    Request request;
    request.prompt = one.prompt;
    request.n_predict = 100;
    request.sampling.temperature = 0.0F;
    RequestCallbacks callbacks;
    callbacks.on_token = [&one](TokenEvent&& event) {
      one.got.push_back(event.id);
      one.logprobs.push_back(event.logprob);
    };
    callbacks.on_finish = [&one](Finish&& finish) { one.finish = std::move(finish); };
    const auto id = engine.submit(std::move(request), std::move(callbacks));
    ASSERT_TRUE(id.ok()) << id.error().message;
  }
  // Ends by itself: an idle engine leaves nothing behind in the loop.
  while (loop.run_one_or_advance()) {
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(cases[i].finish);
    EXPECT_FALSE(cases[i].finish->error) << cases[i].finish->error->message;
    EXPECT_EQ(cases[i].got, cases[i].expected);
    const auto logprobs = reference["cases"][i]["logprobs"].get<std::vector<double>>();
    for (std::size_t t = 0; t < cases[i].logprobs.size(); ++t)
      ASSERT_NEAR(cases[i].logprobs[t], logprobs[t], 1e-3) << "token " << t;
  }
  EXPECT_EQ(engine.n_pages_free(), n_pages);
}

TEST(EngineOnAModel, GivesTheReferenceTokensInOneBatch) { generate_together(64, 64); }

TEST(EngineOnAModel, GivesTheReferenceTokensWhenPagesRunShort) { generate_together(20, 16); }

}  // namespace
}  // namespace recua::engine
