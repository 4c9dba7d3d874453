// The rules of model/executor.h, each broken once, and the bounds of SliceRunner::create().
#include <functional>
#include <limits>

#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "model/local_weight_source.h"
#include "model/test_models.h"

namespace recua::model {
namespace {

const char* const kModel = "models/stories260K.gguf";

SliceOptions small_options() {
  SliceOptions options = {.n_ctx = 24, .n_pages = 8, .page_tokens = 4};
  options.n_ubatch = 8;
  options.n_logit_rows = 4;
  return options;
}

class BatchRules : public ::testing::Test {
 protected:
  // An executor with sequence 1 of six tokens in the pages 0 and 1.
  void SetUp() override {
    device = test_device();
    auto created = LocalExecutor::create(*device, open_golden(kModel), small_options(), {}, 16);
    ASSERT_TRUE(created.ok());
    executor = std::move(created).value();
    StepBatch batch;
    batch.parts.push_back(
        {.seq = 1, .position = 0, .tokens = {1, 2, 3, 4, 5, 6}, .new_pages = {0, 1}});
    ASSERT_TRUE(executor->run(batch).ok());
    wanted = next_logits();
  }

  // What follows the six tokens; leaves the sequence as it was.
  std::vector<float> next_logits() {
    StepBatch batch;
    batch.parts.push_back({.seq = 1, .position = 6, .tokens = {7}});
    batch.outputs.push_back({.row = 0, .kind = OutputRequest::Kind::kLogits});
    auto result = executor->run(batch);
    EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
    StepBatch back;
    back.ops.push_back({.kind = SequenceOp::Kind::kTruncate, .seq = 1, .n_tokens = 6});
    EXPECT_TRUE(executor->run(back).ok());
    return result.ok() ? result->outputs[0].logits : std::vector<float>();
  }

  void expect_refused(const StepBatch& batch, const std::string& words) {
    const auto result = executor->run(batch);
    ASSERT_FALSE(result.ok()) << "expected: " << words;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument) << result.error().message;
    EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
    EXPECT_EQ(next_logits(), wanted) << "something was changed";
  }

  std::unique_ptr<compute::Device> device;
  std::unique_ptr<LocalExecutor> executor;
  std::vector<float> wanted;
};

StepBatch one_token() {
  StepBatch batch;
  batch.parts.push_back({.seq = 1, .position = 6, .tokens = {7}});
  batch.outputs.push_back({.row = 0});
  return batch;
}

TEST_F(BatchRules, AreCheckedForEveryField) {
  using Kind = OutputRequest::Kind;
  const std::vector<std::pair<std::string, std::function<void(StepBatch&)>>> cases = {
      {"token id 512; expected 0 to 511", [](auto& b) { b.parts[0].tokens[0] = 512; }},
      {"token id -1", [](auto& b) { b.parts[0].tokens[0] = -1; }},
      {"no tokens", [](auto& b) { b.parts[0].tokens.clear(), b.outputs.clear(); }},
      {"expected 6, its length", [](auto& b) { b.parts[0].position = 5; }},
      {"expected 0, its length", [](auto& b) { b.parts[0].seq = 9; }},
      {"given 1 new pages", [](auto& b) { b.parts[0].new_pages = {5}; }},
      {"twice in one step",
       [](auto& b) { b.parts.push_back({.seq = 1, .position = 7, .tokens = {7}}); }},
      {"page 1, which is in use",
       [](auto& b) { b.parts.push_back({.seq = 2, .tokens = {7}, .new_pages = {1}}); }},
      {"page 8; expected a page from 0 to 7",
       [](auto& b) { b.parts.push_back({.seq = 2, .tokens = {7}, .new_pages = {8}}); }},
      {"output is asked for row 1 of 1", [](auto& b) { b.outputs[0].row = 1; }},
      {"ascending rows", [](auto& b) { b.outputs.push_back(b.outputs[0]); }},
      {"kind 9; expected 1 (sample)", [](auto& b) { b.outputs[0].kind = static_cast<Kind>(9); }},
      {"target 512", [](auto& b) { b.outputs[0].kind = Kind::kScore, b.outputs[0].target = 512; }},
      {"target -1", [](auto& b) { b.outputs[0].kind = Kind::kScore, b.outputs[0].target = -1; }},
      {"513 most probable tokens", [](auto& b) { b.outputs[0].n_top = 513; }},
      {"row 0: top_p is 2", [](auto& b) { b.outputs[0].sampling.top_p = 2.0F; }},
      {"token 600", [](auto& b) { b.outputs[0].sampling.logit_bias = {{600, 1.0F}}; }},
      {"sequence 5 cannot be freed", [](auto& b) { b.ops.push_back({.seq = 5}); }},
      {"kind 0; expected 1 (free)",
       [](auto& b) { b.ops.push_back({.kind = static_cast<SequenceOp::Kind>(0)}); }},
      {"it has 6",
       [](auto& b) {
         b.ops.push_back({.kind = SequenceOp::Kind::kTruncate, .seq = 1, .n_tokens = 7});
       }},
      // What an operation of the same step did counts, and is taken back.
      {"expected 0, its length", [](auto& b) { b.ops.push_back({.seq = 1}); }},
  };
  for (const auto& [words, spoil] : cases) {
    SCOPED_TRACE(words);
    StepBatch batch = one_token();
    spoil(batch);
    expect_refused(batch, words);
  }
}

TEST_F(BatchRules, HoldForStepsOfSeveralMicroBatchesAsAWhole) {
  // 6 + 12 rows: the first 8 would be fine, the mistake is in the last micro-batch.
  StepBatch batch;
  batch.ops.push_back({.kind = SequenceOp::Kind::kTruncate, .seq = 1, .n_tokens = 2});
  batch.parts.push_back(
      {.seq = 1, .position = 2, .tokens = std::vector<TokenId>(12, 3), .new_pages = {2, 3, 9}});
  expect_refused(batch, "page 9");
  batch.parts[0].new_pages = {2, 3, 4, 5};
  expect_refused(batch, "given 4 new pages");
  batch.parts[0].new_pages = {2, 3};
  expect_refused(batch, "given 2 new pages");
  batch.parts[0].new_pages = {2, 3, 4};
  batch.outputs.push_back({.row = 12});
  expect_refused(batch, "row 12 of 12");
  batch.outputs.clear();
  batch.parts[0].tokens.assign(17, 3);
  expect_refused(batch, "17 rows; at most 16");
  batch.parts[0].tokens.assign(12, 3);
  EXPECT_TRUE(executor->run(batch).ok());
}

TEST_F(BatchRules, BoundTheContext) {
  StepBatch batch;
  batch.parts.push_back(
      {.seq = 1, .position = 6, .tokens = std::vector<TokenId>(14, 3), .new_pages = {2, 3, 4}});
  ASSERT_TRUE(executor->run(batch).ok());  // 20 tokens.
  batch.parts[0] = {.seq = 1, .position = 20, .tokens = {1, 2, 3, 4, 5}, .new_pages = {5, 6}};
  const auto result = executor->run(batch);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("the context holds 24"), std::string::npos);
  batch.parts[0].tokens.pop_back();
  batch.parts[0].new_pages = {5};
  EXPECT_TRUE(executor->run(batch).ok());
}

TEST_F(BatchRules, AnEmptyStepDoesNothing) {
  const auto result = run_awaitable(executor->step({}));
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->outputs.empty());
  EXPECT_EQ(next_logits(), wanted);
}

/// Spawns a step on the loop; its result lands in out.
void spawn_step(boost::asio::io_context& loop, LocalExecutor& executor, const StepBatch& batch,
                std::optional<Result<StepResult>>& out) {
  boost::asio::co_spawn(loop, store_result(executor.step(batch), out), boost::asio::detached);
}

TEST_F(BatchRules, LetOthersRunBetweenTwoMicroBatches) {
  boost::asio::io_context loop;
  StepBatch batch;
  batch.parts.push_back(
      {.seq = 1, .position = 6, .tokens = std::vector<TokenId>(12, 3), .new_pages = {2, 3, 4}});
  std::optional<Result<StepResult>> done;
  bool was_before_the_end = false;
  spawn_step(loop, *executor, batch, done);
  boost::asio::post(loop, [&] { was_before_the_end = !done; });
  loop.run();
  EXPECT_TRUE(was_before_the_end);
  ASSERT_TRUE(done);
  EXPECT_TRUE(done->ok());
}

TEST_F(BatchRules, StepsTakeEffectInTheOrderOfTheCalls) {
  boost::asio::io_context loop;
  StepBatch two_pieces;
  two_pieces.parts.push_back(
      {.seq = 1, .position = 6, .tokens = std::vector<TokenId>(12, 3), .new_pages = {2, 3, 4}});
  StepBatch back;
  back.ops.push_back({.kind = SequenceOp::Kind::kTruncate, .seq = 1, .n_tokens = 6});
  std::vector<std::optional<Result<StepResult>>> done(4);
  spawn_step(loop, *executor, two_pieces, done[0]);
  spawn_step(loop, *executor, back, done[1]);
  spawn_step(loop, *executor, two_pieces, done[2]);
  spawn_step(loop, *executor, back, done[3]);
  loop.run();
  for (const auto& result : done) {
    ASSERT_TRUE(result);
    EXPECT_TRUE(result->ok()) << result->error().message;
  }
  EXPECT_EQ(next_logits(), wanted);
}

TEST_F(BatchRules, AStepMayDieWithItsLoop) {
  auto loop = std::make_unique<boost::asio::io_context>();
  StepBatch batch;
  batch.parts.push_back(
      {.seq = 1, .position = 6, .tokens = std::vector<TokenId>(12, 3), .new_pages = {2, 3, 4}});
  std::optional<Result<StepResult>> done;
  spawn_step(*loop, *executor, batch, done);
  loop->run_one();
  executor.reset();
  loop.reset();
  EXPECT_FALSE(done);
}

TEST_F(BatchRules, OutputsSayWhatWasAskedFor) {
  using Kind = OutputRequest::Kind;
  StepBatch batch;
  batch.parts.push_back({.seq = 1, .position = 6, .tokens = {7, 8, 9}, .new_pages = {2}});
  batch.outputs.push_back({.row = 0, .kind = Kind::kLogits, .n_top = 2});
  batch.outputs.push_back({.row = 1, .kind = Kind::kScore, .target = 42, .n_top = 3});
  batch.outputs.push_back({.row = 2, .n_top = 1, .sampling = {.temperature = 0.0F}});
  const auto result = executor->run(batch);
  ASSERT_TRUE(result.ok()) << result.error().message;
  const auto& outputs = result->outputs;
  ASSERT_EQ(outputs.size(), 3U);
  EXPECT_EQ(outputs[0].logits, wanted);
  EXPECT_EQ(outputs[0].top.size(), 2U);
  EXPECT_EQ(outputs[0].top[0].id, outputs[0].id);
  EXPECT_EQ(outputs[1].row, 1U);
  EXPECT_EQ(outputs[1].id, 42);
  EXPECT_TRUE(outputs[1].logits.empty());
  EXPECT_GE(outputs[1].top[0].logprob, outputs[1].top[1].logprob);
  EXPECT_GE(outputs[1].top[0].logprob, outputs[1].logprob);
  EXPECT_EQ(outputs[2].id, outputs[2].top[0].id);
  EXPECT_EQ(outputs[2].logprob, outputs[2].top[0].logprob);
}

TEST(SliceRunner, ChecksItsOptionsAndSlice) {
  const auto device = test_device();
  const auto file = open_golden(kModel);
  const auto hp = read_hyperparams(*file);
  const LocalWeightSource source(file);
  SingleRank alone;
  const auto create = [&](const Slice& slice, const SliceOptions& options) {
    return SliceRunner::create(*device, *hp, source, slice, options, alone);
  };
  const Slice whole = {.layer_begin = 0, .layer_end = 5, .n_layers = 5};
  ASSERT_TRUE(create(whole, small_options()).ok());
  const std::vector<std::pair<std::string, std::function<void(Slice&, SliceOptions&)>>> cases = {
      {"n_ctx is 0", [](auto&, auto& o) { o.n_ctx = 0; }},
      {"page_tokens is 0", [](auto&, auto& o) { o.page_tokens = 0; }},
      {"page_tokens is 4294967295", [](auto&, auto& o) { o.page_tokens = 0xffffffffU; }},
      {"n_ubatch is 0", [](auto&, auto& o) { o.n_ubatch = 0; }},
      {"n_logit_rows is 0", [](auto&, auto& o) { o.n_logit_rows = 0; }},
      {"n_pages is 4294967295", [](auto&, auto& o) { o.n_pages = 0xffffffffU; }},
      {"keep keys in Q6_K", [](auto&, auto& o) { o.k_type = quant::DataType::kQ6_K; }},
      {"blocks of 32, and the heads of this model have 8",
       [](auto&, auto& o) { o.v_type = quant::DataType::kQ8_0; }},
      {"layers 3 to 3", [](auto& s, auto&) { s.layer_begin = s.layer_end = 3; }},
      {"layers 0 to 6", [](auto& s, auto&) { s.layer_end = 6; }},
      {"of 7", [](auto& s, auto&) { s.n_layers = 7; }},
      {"rank 0 of 2", [](auto& s, auto&) { s.n_ranks = 2; }},
  };
  for (const auto& [words, spoil] : cases) {
    Slice slice = whole;
    SliceOptions options = small_options();
    spoil(slice, options);
    const auto runner = create(slice, options);
    ASSERT_FALSE(runner.ok()) << words;
    EXPECT_NE(runner.error().message.find(words), std::string::npos) << runner.error().message;
  }
}

TEST(SliceRunner, MakesRoomForOneContextUnlessToldOtherwise) {
  const auto device = test_device();
  SliceOptions options = small_options();
  options.n_pages = 0;
  options.n_ctx = 25;
  const auto executor = LocalExecutor::create(*device, open_golden(kModel), options);
  ASSERT_TRUE(executor.ok());
  EXPECT_EQ((*executor)->info().n_pages, 7U);
  EXPECT_EQ((*executor)->info().vocab_size, 512U);
  EXPECT_NE((*executor)->info().description.find("1 slice on cpu"), std::string::npos);
}

TEST(SliceRunner, SaysHowMuchMemoryItLacks) {
  const auto device = test_device();
  SliceOptions options = small_options();
  options.n_pages = 1U << 28;
  options.page_tokens = 4096;
  const auto executor = LocalExecutor::create(*device, open_golden(kModel), options);
  ASSERT_FALSE(executor.ok());
  EXPECT_EQ(executor.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(executor.error().message.find("KV cache of"), std::string::npos);
}

TEST(SliceRunner, ForgetsAllSequencesOnClear) {
  const auto device = test_device();
  const auto file = open_golden(kModel);
  const auto hp = read_hyperparams(*file);
  const LocalWeightSource source(file);
  SingleRank alone;
  const Slice whole = {.layer_begin = 0, .layer_end = 5, .n_layers = 5};
  const auto runner = SliceRunner::create(*device, *hp, source, whole, small_options(), alone);
  ASSERT_TRUE(runner.ok());
  StepBatch batch;
  batch.parts.push_back({.seq = 0, .tokens = {1}, .new_pages = {3}});
  batch.outputs.push_back({.row = 0, .kind = OutputRequest::Kind::kLogits});
  StepResult first;
  StepResult second;
  ASSERT_TRUE((*runner)->run(batch, {}, {}, first).ok());
  EXPECT_FALSE((*runner)->run(batch, {}, {}, second).ok());
  EXPECT_TRUE(second.outputs.empty());
  (*runner)->clear();
  ASSERT_TRUE((*runner)->run(batch, {}, {}, second).ok());
  EXPECT_EQ(first.outputs[0].logits, second.outputs[0].logits);
}

}  // namespace
}  // namespace recua::model
