#include "engine/engine.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "base/random.h"
#include "engine/fake_executor.h"
#include "engine/token_stream.h"
#include "model/batch_tables.h"
#include "net/sim/sim_loop.h"

namespace recua::engine {
namespace {

namespace asio = boost::asio;

constexpr std::uint32_t kVocab = 1000;

model::ExecutorInfo small_info() {
  return {.vocab_size = kVocab,
          .n_ctx = 64,
          .n_pages = 40,
          .page_tokens = 4,
          .n_batch = 16,
          .n_ubatch = 8,
          .description = "fake"};
}

/// What the model says on its own, without any engine.
std::vector<TokenId> expected_tokens(const Request& request) {
  std::vector<TokenId> tokens = request.prompt;
  std::vector<TokenId> out;
  for (std::uint32_t i = 0; i < *request.n_predict; ++i) {
    const TokenId id = fake_next_token(tokens, request.sampling.seed, kVocab);
    if (request.is_end && request.is_end(id)) break;
    tokens.push_back(id);
    out.push_back(id);
  }
  return out;
}

Request make_request(Rng& rng, std::size_t n_prompt_max = 30, std::size_t n_predict_max = 25) {
  Request request;
  const std::size_t n_prompt = 1 + rng.below(n_prompt_max);
  for (std::size_t i = 0; i < n_prompt; ++i)
    request.prompt.push_back(static_cast<TokenId>(rng.below(kVocab)));
  request.n_predict = static_cast<std::uint32_t>(1 + rng.below(n_predict_max));
  request.sampling.seed = rng.below(5);
  return request;
}

/// A request under way, and what came of it.
struct Trace {
  Request request;
  RequestId id = 0;
  std::vector<TokenEvent> prompt;
  std::vector<TokenId> tokens;
  std::optional<Finish> finish;
};

class EngineTest : public testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kError); }

  void make(const model::ExecutorInfo& info, const EngineOptions& options = {}) {
    executor_ = std::make_unique<FakeExecutor>(info);
    engine_ = std::make_unique<Engine>(loop_.executor(), loop_, *executor_, options);
  }

  std::shared_ptr<Trace> begin(Request request) {
    auto run = std::make_shared<Trace>();
    run->request = request;
    RequestCallbacks callbacks;
    callbacks.on_token = [run](TokenEvent&& event) {
      EXPECT_FALSE(run->finish.has_value()) << "a token after the end";
      if (event.is_prompt) {
        run->prompt.push_back(std::move(event));
      } else {
        EXPECT_EQ(event.position, run->request.prompt.size() + run->tokens.size());
        run->tokens.push_back(event.id);
      }
    };
    callbacks.on_finish = [run](Finish&& finish) {
      EXPECT_FALSE(run->finish.has_value()) << "finished twice";
      run->finish = std::move(finish);
    };
    auto id = engine_->submit(std::move(request), std::move(callbacks));
    EXPECT_TRUE(id.ok()) << id.error().message;
    if (id.ok()) run->id = *id;
    return run;
  }

  void drain() {
    ASSERT_TRUE(loop_.run_until([this] { return engine_->n_requests() == 0; }));
    // Whatever is still on its way in the loop.
    while (loop_.run_one_or_advance()) {
    }
  }

  void expect_clean() {
    EXPECT_EQ(executor_->offences(), std::vector<std::string>{});
    EXPECT_EQ(engine_->n_pages_free(), executor_->info().n_pages);
  }

  net::SimLoop loop_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, GeneratesWhatTheModelSays) {
  make(small_info());
  Rng rng(1);
  const auto run = begin(make_request(rng));
  drain();
  EXPECT_EQ(run->tokens, expected_tokens(run->request));
  ASSERT_TRUE(run->finish);
  EXPECT_EQ(run->finish->reason, FinishReason::kLength);
  EXPECT_EQ(run->finish->n_generated, *run->request.n_predict);
  expect_clean();
}

TEST_F(EngineTest, GivesTheSameAnswersAloneAndInABatch) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    model::ExecutorInfo info = small_info();
    info.n_batch = static_cast<std::uint32_t>(1 + rng.below(40));
    info.page_tokens = static_cast<std::uint32_t>(1 + rng.below(8));
    // From barely enough for one request to plenty: the small ones push each other out.
    info.n_pages = static_cast<std::uint32_t>(64 / info.page_tokens + 1 + rng.below(60));
    make(info, {.n_running_max = 1 + rng.below(12)});
    executor_->n_hops = [&rng] { return static_cast<int>(rng.below(3)); };
    std::vector<std::shared_ptr<Trace>> runs;
    const std::size_t n_requests = 1 + rng.below(20);
    for (std::size_t i = 0; i < n_requests; ++i) {
      runs.push_back(begin(make_request(rng)));
      for (std::uint64_t k = rng.below(4); k > 0; --k) loop_.run_one_or_advance();
    }
    drain();
    for (const auto& run : runs) {
      EXPECT_EQ(run->tokens, expected_tokens(run->request));
      ASSERT_TRUE(run->finish);
      EXPECT_EQ(run->finish->reason, FinishReason::kLength);
    }
    expect_clean();
  }
}

TEST_F(EngineTest, BatchesRequestsTogether) {
  make(small_info());
  for (TokenId i = 0; i < 8; ++i) {
    Request request;
    request.prompt = {i};
    request.n_predict = 10;
    begin(std::move(request));
  }
  drain();
  EXPECT_EQ(executor_->most_parts(), 8U);
  EXPECT_EQ(executor_->n_steps(), 10U);
}

TEST_F(EngineTest, StopsAtAnEndTokenWithoutReportingIt) {
  make(small_info());
  Rng rng(3);
  Request request = make_request(rng, 5);
  request.n_predict = 20;
  const TokenId end = expected_tokens(request)[7];
  request.is_end = [end](TokenId id) { return id == end; };
  const auto run = begin(request);
  drain();
  EXPECT_EQ(run->tokens, expected_tokens(request));
  EXPECT_EQ(run->tokens.size(), 7U);
  EXPECT_EQ(run->finish->reason, FinishReason::kStop);
  expect_clean();
}

// Each step takes a second. The end token comes with a step of its own, which made no text.
TEST_F(EngineTest, TimesTheReportedTokensOnly) {
  make(small_info());
  Rng rng(3);
  Request request = make_request(rng, 5);
  request.n_predict = 20;
  const TokenId end = expected_tokens(request)[7];
  request.is_end = [end](TokenId id) { return id == end; };
  executor_->fault = [this](std::size_t, const model::StepBatch&) -> std::optional<Error> {
    loop_.run_for(std::chrono::seconds(1));
    return std::nullopt;
  };
  const auto run = begin(request);
  drain();
  ASSERT_EQ(run->tokens.size(), 7U);
  EXPECT_EQ(run->finish->prefill_time, std::chrono::seconds(1));
  EXPECT_EQ(run->finish->decode_time, std::chrono::seconds(6));
}

TEST_F(EngineTest, EndsWhenTheContextIsFull) {
  make(small_info());
  Request request;
  request.prompt.assign(60, 7);
  const auto run = begin(request);
  drain();
  // 64 cached tokens give the one behind them as well.
  EXPECT_EQ(run->tokens.size(), 5U);
  EXPECT_EQ(run->finish->reason, FinishReason::kLength);
  expect_clean();
}

TEST_F(EngineTest, ScoresThePromptOnceWhateverTheChunks) {
  for (const std::uint32_t n_predict : {0U, 4U}) {
    make(small_info());
    Rng rng(5);
    std::vector<std::shared_ptr<Trace>> runs;
    for (int i = 0; i < 5; ++i) {
      Request request = make_request(rng, 60);
      request.prompt_n_top = 2;
      request.n_predict = n_predict;
      runs.push_back(begin(request));
    }
    executor_->fault = [](std::size_t step, const model::StepBatch&) -> std::optional<Error> {
      if (step == 3) return Error{ErrorCode::kCachesLost, "a worker is gone"};
      return std::nullopt;
    };
    drain();
    for (const auto& run : runs) {
      const std::vector<TokenId>& prompt = run->request.prompt;
      ASSERT_EQ(run->prompt.size(), prompt.size() - 1);
      for (std::size_t i = 0; i < run->prompt.size(); ++i) {
        const std::span<const TokenId> before(prompt.data(), i + 1);
        EXPECT_EQ(run->prompt[i].id, prompt[i + 1]);
        EXPECT_EQ(run->prompt[i].position, i + 1);
        EXPECT_EQ(run->prompt[i].logprob, fake_logprob(before, prompt[i + 1]));
        EXPECT_EQ(run->prompt[i].top.size(), 2U);
      }
      EXPECT_EQ(run->tokens, expected_tokens(run->request));
      EXPECT_EQ(run->finish->reason, FinishReason::kLength);
    }
    expect_clean();
  }
}

TEST_F(EngineTest, CancelEndsTheRequestAtOnceAndFreesItsPages) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    make(small_info());
    executor_->n_hops = [&rng] { return static_cast<int>(rng.below(3)); };
    std::vector<std::shared_ptr<Trace>> runs;
    for (int i = 0; i < 10; ++i) runs.push_back(begin(make_request(rng)));
    for (int i = 0; i < 10; i += 2) {
      for (std::uint64_t k = rng.below(10); k > 0; --k) loop_.run_one_or_advance();
      const bool was_finished = runs[static_cast<std::size_t>(i)]->finish.has_value();
      engine_->cancel(runs[static_cast<std::size_t>(i)]->id);
      ASSERT_TRUE(runs[static_cast<std::size_t>(i)]->finish);
      if (!was_finished) {
        EXPECT_EQ(runs[static_cast<std::size_t>(i)]->finish->reason, FinishReason::kCancelled);
      }
    }
    drain();
    for (std::size_t i = 1; i < 10; i += 2)
      EXPECT_EQ(runs[i]->tokens, expected_tokens(runs[i]->request));
    expect_clean();
  }
}

TEST_F(EngineTest, MayBeCancelledFromItsOwnCallback) {
  make(small_info());
  Request request;
  request.prompt = {1, 2, 3};
  request.n_predict = 50;
  RequestId id = 0;
  int n_tokens = 0;
  std::optional<Finish> end;
  RequestCallbacks callbacks;
  callbacks.on_token = [&](TokenEvent&&) {
    if (++n_tokens == 3) engine_->cancel(id);
  };
  callbacks.on_finish = [&](Finish&& finish) { end = std::move(finish); };
  auto submitted = engine_->submit(request, callbacks);
  ASSERT_TRUE(submitted.ok());
  id = *submitted;
  drain();
  EXPECT_EQ(n_tokens, 3);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->reason, FinishReason::kCancelled);
  expect_clean();
}

TEST_F(EngineTest, MayBeDestroyedFromACallback) {
  make(small_info());
  RequestCallbacks callbacks;
  callbacks.on_token = [&](TokenEvent&&) { engine_.reset(); };
  callbacks.on_finish = [&](Finish&&) { ADD_FAILURE() << "a word after the engine's end"; };
  Request request;
  request.prompt = {1};
  request.n_predict = 50;
  ASSERT_TRUE(engine_->submit(request, callbacks).ok());
  ASSERT_TRUE(engine_->submit(request, {}).ok());
  while (loop_.run_one_or_advance()) {
  }
  EXPECT_EQ(engine_, nullptr);
  EXPECT_EQ(executor_->n_steps(), 1U);
}

TEST_F(EngineTest, ReplaysAfterLostCachesAndSaysNothingTwice) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    make(small_info());
    executor_->n_hops = [&rng] { return static_cast<int>(rng.below(3)); };
    executor_->half_done = rng.below(2) == 0;
    executor_->fault = [this, &rng](std::size_t, const model::StepBatch&) -> std::optional<Error> {
      if (rng.below(10) != 0) return std::nullopt;
      executor_->half_done = false;
      return Error{ErrorCode::kCachesLost, "a worker is gone"};
    };
    std::vector<std::shared_ptr<Trace>> runs;
    for (int i = 0; i < 8; ++i) runs.push_back(begin(make_request(rng)));
    drain();
    for (const auto& run : runs) {
      EXPECT_EQ(run->tokens, expected_tokens(run->request));
      EXPECT_EQ(run->finish->reason, FinishReason::kLength);
    }
    expect_clean();
  }
}

TEST_F(EngineTest, GivesUpOnAnExecutorThatAlwaysLosesItsCaches) {
  make(small_info());
  executor_->fault = [](std::size_t, const model::StepBatch&) -> std::optional<Error> {
    return Error{ErrorCode::kCachesLost, "again"};
  };
  Rng rng(2);
  const auto run = begin(make_request(rng));
  drain();
  ASSERT_TRUE(run->finish);
  EXPECT_EQ(run->finish->reason, FinishReason::kError);
  EXPECT_EQ(run->finish->error->code, ErrorCode::kUnavailable);
}

// A step fails, before or after it took effect. Its requests end with the error, the others with
// the right tokens, and no page is lost.
TEST_F(EngineTest, AnErrorEndsTheRequestsOfItsStepOnly) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    make(small_info(), {.n_running_max = 3});
    const bool invalid = rng.below(2) == 0;
    executor_->half_done = !invalid && rng.below(2) == 0;
    const std::size_t failing_step = rng.below(40);
    std::vector<TokenId> first_tokens;
    executor_->fault = [&](std::size_t step,
                           const model::StepBatch& batch) -> std::optional<Error> {
      if (step != failing_step || batch.parts.empty()) return std::nullopt;
      for (std::size_t i = 0; i < batch.parts.size(); ++i) first_tokens.push_back(0);
      return Error{invalid ? ErrorCode::kInvalidArgument : ErrorCode::kCorrupt, "NaN in a row"};
    };
    std::vector<std::shared_ptr<Trace>> runs;
    for (int i = 0; i < 9; ++i) runs.push_back(begin(make_request(rng)));
    drain();
    std::size_t n_failed = 0;
    for (const auto& run : runs) {
      ASSERT_TRUE(run->finish);
      if (run->finish->reason == FinishReason::kError) {
        ++n_failed;
        EXPECT_EQ(run->finish->error->message, "NaN in a row");
        continue;
      }
      EXPECT_EQ(run->tokens, expected_tokens(run->request));
    }
    EXPECT_EQ(n_failed, first_tokens.size());
    EXPECT_EQ(engine_->n_pages_free(), executor_->info().n_pages);
    // Only freeing what may not exist is allowed to be refused.
    for (const std::string& offence : executor_->offences())
      EXPECT_TRUE(offence.starts_with("operation on sequence")) << offence;
    // The engine lives, and the executor holds nothing that the engine takes for free.
    executor_->fault = nullptr;
    executor_->half_done = false;
    const auto later = begin(make_request(rng));
    drain();
    EXPECT_EQ(later->tokens, expected_tokens(later->request));
    EXPECT_LE(executor_->n_sequences(), 1U);
  }
}

TEST_F(EngineTest, RefusesWrongRequestsBeforeAnyStep) {
  make(small_info());
  const auto refuse = [this](const Request& request, const std::string& what) {
    const auto id = engine_->submit(request, {});
    ASSERT_FALSE(id.ok());
    EXPECT_EQ(id.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(id.error().message.find(what), std::string::npos) << id.error().message;
  };
  Request request;
  refuse(request, "empty");
  request.prompt.assign(65, 1);
  refuse(request, "65 tokens, the context holds 64");
  request.prompt = {1, 1000};
  refuse(request, "token 1 of the prompt is 1000, the model's ids are 0 to 999");
  request.prompt = {-1};
  refuse(request, "token 0 of the prompt is -1");
  request.prompt = {1};
  request.n_top = 1001;
  refuse(request, "1001 most probable");
  request.n_top = 0;
  request.prompt_n_top = 1001;
  refuse(request, "1001 most probable tokens were asked for, at most 1000 can be");
  request.prompt_n_top.reset();
  request.sampling.logit_bias = {{.id = 5000, .bias = 1.0F}};
  refuse(request, "5000");
  EXPECT_EQ(executor_->n_steps(), 0U);
  EXPECT_EQ(engine_->n_requests(), 0U);
}

TEST_F(EngineTest, RefusesMoreCandidatesThanAStepCanGive) {
  model::ExecutorInfo info = small_info();
  info.vocab_size = 100000;
  make(info);
  Request request;
  request.prompt = {1};
  request.n_top = model::kTopMax + 1;
  const auto id = engine_->submit(request, {});
  ASSERT_FALSE(id.ok());
  EXPECT_EQ(id.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(id.error().message.find("at most 1024"), std::string::npos) << id.error().message;
}

TEST_F(EngineTest, TakesNoStepForNothing) {
  make(small_info());
  Request request;
  request.prompt = {1};
  request.n_predict = 0;
  const auto run = begin(request);
  EXPECT_FALSE(run->finish);  // Not before submit() has returned.
  drain();
  EXPECT_EQ(run->finish->reason, FinishReason::kLength);
  EXPECT_EQ(executor_->n_steps(), 0U);
}

asio::awaitable<std::vector<TokenId>> collect(TokenStream& stream, std::size_t n_max) {
  std::vector<TokenId> tokens;
  while (tokens.size() < n_max) {
    Result<std::optional<TokenEvent>> next = co_await stream.next();
    if (!next.ok() || !next->has_value()) break;
    tokens.push_back((*next)->id);
  }
  co_return tokens;
}

TEST_F(EngineTest, StreamsTokensToACoroutine) {
  make(small_info());
  Rng rng(11);
  Request request = make_request(rng);
  auto stream = TokenStream::open(*engine_, request);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(loop_.run(collect(*stream, 1000)), expected_tokens(request));
  ASSERT_TRUE(stream->finish());
  EXPECT_EQ(stream->finish()->reason, FinishReason::kLength);
}

TEST_F(EngineTest, ADroppedStreamCancelsItsRequest) {
  make(small_info());
  Request request;
  request.prompt = {4};
  request.n_predict = 50;
  {
    auto stream = TokenStream::open(*engine_, request);
    ASSERT_TRUE(stream.ok());
    EXPECT_EQ(loop_.run(collect(*stream, 3)).size(), 3U);
  }
  EXPECT_EQ(engine_->n_requests(), 0U);
  drain();
  expect_clean();
}

}  // namespace
}  // namespace recua::engine
