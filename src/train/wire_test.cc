#include "train/wire.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "train/model_file.h"

namespace recua::train {
namespace {

RankTask small_task() {
  RankTask task;
  model::HyperParams& hp = task.shape.hp;
  hp.architecture = model::find_architecture("llama");
  hp.vocab_size = 300;
  hp.n_ctx_train = 64;
  hp.n_layers = 2;
  hp.hidden_size = 32;
  hp.n_heads = 4;
  hp.n_kv_heads = 2;
  hp.head_dim = hp.rope_dim = 8;
  hp.ffn_size = 64;
  task.shape.tied = true;
  task.shape.rope_divisors = {1.0F, 2.0F, 4.0F, 8.0F};
  task.options = {.rank = 1, .n_ranks = 3, .batch = 4, .n_ctx = 16, .recompute = true};
  task.options.adam.clip_norm = 0.5;
  return task;
}

wire::OpenTraining message_of(const RankTask& task) {
  wire::OpenTraining out;
  to_wire(task, shape_gguf(task.shape, {}), out);
  return out;
}

TEST(TrainWire, TasksComeBackAsTheyWere) {
  const RankTask task = small_task();
  const auto back = from_wire(message_of(task));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(ParameterLayout(back->shape).n_params(), ParameterLayout(task.shape).n_params());
  EXPECT_EQ(back->shape.hp.n_kv_heads, 2U);
  EXPECT_EQ(back->shape.rope_divisors, task.shape.rope_divisors);
  EXPECT_TRUE(back->shape.tied);
  EXPECT_EQ(back->options.rank, 1U);
  EXPECT_EQ(back->options.n_ranks, 3U);
  EXPECT_EQ(back->options.batch, 4U);
  EXPECT_EQ(back->options.n_ctx, 16U);
  EXPECT_TRUE(back->options.recompute);
  EXPECT_EQ(back->options.adam.clip_norm, 0.5);
  EXPECT_EQ(back->options.adam.beta2, AdamOptions{}.beta2);
}

TEST(TrainWire, TasksOutOfBoundsAreRefusedByName) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const struct {
    const char* word;
    std::function<void(wire::OpenTraining&)> change;
  } cases[] = {
      {"hyperparams_gguf", [](auto& m) { m.set_hyperparams_gguf("GGUF"); }},
      {"n_ranks", [](auto& m) { m.set_n_ranks(0); }},
      {"n_ranks", [](auto& m) { m.set_n_ranks(65); }},
      {"rank", [](auto& m) { m.set_rank(3); }},
      {"batch", [](auto& m) { m.set_batch(0); }},
      {"batch", [](auto& m) { m.set_batch(1U << 31U); }},
      {"batch", [](auto& m) { m.set_batch(65536), m.set_n_ctx(65536); }},
      {"n_ctx", [](auto& m) { m.set_n_ctx(0); }},
      {"n_ctx", [](auto& m) { m.set_n_ctx(~0U); }},
      {"rope_divisors", [](auto& m) { m.add_rope_divisors(1.0F); }},
      {"rope_divisors", [](auto& m) { m.set_rope_divisors(2, 0.0F); }},
      {"beta1", [](auto& m) { m.set_beta1(1.0); }},
      {"beta2", [nan](auto& m) { m.set_beta2(nan); }},
      {"eps", [nan](auto& m) { m.set_eps(nan); }},
      {"weight_decay", [](auto& m) { m.set_weight_decay(-1.0); }},
  };
  for (const auto& [word, change] : cases) {
    SCOPED_TRACE(word);
    wire::OpenTraining message = message_of(small_task());
    change(message);
    const auto refused = from_wire(message);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find(word), std::string::npos) << refused.error().message;
  }
}

// Each number is within its bounds; together they would overflow what is computed from them.
TEST(TrainWire, TasksThatNoMachineHoldsAreRefused) {
  RankTask task = small_task();
  task.shape.rope_divisors = {};
  task.shape.hp.hidden_size = 1U << 20U;
  task.shape.hp.ffn_size = 1U << 20U;
  task.shape.hp.vocab_size = 1U << 24U;
  task.shape.hp.n_layers = 1000;
  const auto refused = from_wire(message_of(task));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted) << refused.error().message;
}

TEST(TrainWire, StepsComeBackAsTheyWere) {
  const RankTask task = small_task();
  RankStep step{.step = 7, .lr = 1e-3, .scale = 0.25F};
  step.examples = {{.tokens = {1, 299, 3}, .counts = {0, 1}}, {.tokens = {0, 5}, .counts = {1}}};
  wire::TrainStep message;
  to_wire(step, message);
  EXPECT_LE(message.ByteSizeLong(), step_bytes_max(2, 16));
  const auto back = from_wire(message, task);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->step, 7U);
  EXPECT_EQ(back->lr, 1e-3);
  EXPECT_EQ(back->scale, 0.25F);
  ASSERT_EQ(back->examples.size(), 2U);
  EXPECT_EQ(back->examples[0].tokens, step.examples[0].tokens);
  EXPECT_EQ(back->examples[0].counts, step.examples[0].counts);
  EXPECT_EQ(back->examples[1].tokens, step.examples[1].tokens);
}

TEST(TrainWire, StepsThatDoNotFitTheTaskAreRefused) {
  const RankTask task = small_task();
  const struct {
    const char* word;
    Example example;
  } cases[] = {
      {"token 300", {.tokens = {1, 300}, .counts = {1}}},
      {"token -1", {.tokens = {-1, 2}, .counts = {1}}},
      {"1 tokens", {.tokens = {1}, .counts = {}}},
      {"18 tokens",
       {.tokens = std::vector<std::int32_t>(18, 1), .counts = std::vector<std::uint8_t>(17, 1)}},
      {"counts", {.tokens = {1, 2, 3}, .counts = {1}}},
  };
  for (const auto& [word, example] : cases) {
    SCOPED_TRACE(word);
    wire::TrainStep message;
    to_wire(RankStep{.examples = {example}}, message);
    const auto refused = from_wire(message, task);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find(word), std::string::npos) << refused.error().message;
  }
  EXPECT_FALSE(from_wire(wire::TrainStep{}, task).ok());
  wire::TrainStep many;
  const Example example{.tokens = {1, 2}, .counts = {1}};
  to_wire(RankStep{.examples = std::vector<Example>(kStepExamplesMax, example)}, many);
  EXPECT_TRUE(from_wire(many, task).ok());
  *many.add_examples() = many.examples(0);
  const auto refused = from_wire(many, task);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("65537 examples"), std::string::npos)
      << refused.error().message;
}

TEST(TrainWire, PiecesAreWholeNumbersAndNotTooMany) {
  std::string data;
  const std::vector<float> values = {1.0F, -2.5F, std::numeric_limits<float>::infinity()};
  floats_to_wire(values, data);
  EXPECT_EQ(*check_piece(data, "data"), 3U);
  std::vector<float> back(2);
  floats_from_wire(data, 1, back);
  EXPECT_EQ(back, (std::vector<float>{values[1], values[2]}));
  EXPECT_FALSE(check_piece(data + "x", "data").ok());
  EXPECT_FALSE(check_piece("", "data").ok());
  EXPECT_FALSE(check_piece(std::string(4 * (kPieceFloats + 1), 'x'), "data").ok());
}

}  // namespace
}  // namespace recua::train
