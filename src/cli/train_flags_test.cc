#include "cli/train_flags.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

TrainFlags good_flags() {
  TrainFlags flags;
  flags.data = "text.txt";
  flags.out = "run";
  flags.tokenizer = "vocab.gguf";
  return flags;
}

TEST(TrainFlags, NamesTheFlagThatIsWrong) {
  EXPECT_TRUE(good_flags().check().ok());
  const auto message = [](auto&& change) {
    TrainFlags flags = good_flags();
    change(flags);
    const auto checked = flags.check();
    EXPECT_FALSE(checked.ok());
    return checked.ok() ? std::string{} : checked.error().message;
  };
  EXPECT_EQ(message([](TrainFlags& f) { f.data = ""; }).substr(0, 6), "--data");
  EXPECT_EQ(
      message([](TrainFlags& f) { f.lr = std::numeric_limits<double>::quiet_NaN(); }).substr(0, 11),
      "--lr is nan");
  EXPECT_EQ(message([](TrainFlags& f) { f.lr_final = 1.0; }).substr(0, 13), "--min-lr is 1");
  EXPECT_EQ(message([](TrainFlags& f) { f.batch = 0; }).substr(0, 12), "--batch is 0");
  EXPECT_EQ(message([](TrainFlags& f) { f.head_dim = 7; }).substr(0, 15), "--head-dim is 7");
  EXPECT_EQ(message([](TrainFlags& f) { f.base = "b.gguf"; }).substr(0, 10), "-m/--model");
}

TEST(TrainFlags, NamesWhatIsWrongWithAnAdapter) {
  TrainFlags flags = good_flags();
  flags.lora_targets = "attn_q";
  EXPECT_EQ(flags.check().error().message.substr(0, 11), "--lora-rank");
  flags.lora_rank = 8;
  EXPECT_EQ(flags.check().error().message.substr(0, 10), "-m/--model");
  std::swap(flags.base, flags.tokenizer);
  EXPECT_TRUE(flags.check().ok());
  EXPECT_EQ(flags.lora_options().alpha, 16.0F);
  EXPECT_EQ(flags.lora_options().targets, std::vector<std::string>{"attn_q"});
  flags.lora_alpha = -1.0;
  EXPECT_EQ(flags.check().error().message.substr(0, 12), "--lora-alpha");
  flags.lora_alpha = 4.0;
  flags.lora_targets = "attn_q,attn_norm";
  EXPECT_EQ(flags.check().error().message.substr(0, 14), "--lora-targets");
  flags.lora_targets.clear();
  EXPECT_EQ(flags.lora_options().targets.size(), 7U);
  flags.lora_rank = 9000;
  EXPECT_EQ(flags.check().error().message.substr(0, 11), "--lora-rank");
}

TEST(TrainFlags, FillsInWhatWasNotGiven) {
  TrainFlags flags = good_flags();
  flags.hidden_size = 192;
  flags.n_heads = 6;
  const train::ModelShape shape = flags.new_shape(1000);
  EXPECT_EQ(shape.hp.head_dim, 32U);
  EXPECT_EQ(shape.hp.n_kv_heads, 6U);
  EXPECT_EQ(shape.hp.ffn_size, 512U);
  flags.epochs = 2.5;
  flags.batch = 4;
  flags.accumulate = 2;
  const train::TrainerOptions options = flags.trainer_options(100);
  EXPECT_EQ(options.schedule.n_steps, 32U);  // 250 examples, 8 a step.
  EXPECT_EQ(options.schedule.n_warmup, 1U);
  EXPECT_DOUBLE_EQ(options.schedule.lr_final, flags.lr / 10.0);
  flags.n_steps = 7;
  EXPECT_EQ(flags.trainer_options(100).schedule.n_steps, 7U);
}

}  // namespace
}  // namespace recua::cli
