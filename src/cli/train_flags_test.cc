#include "cli/train_flags.h"

#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "base/scratch_folder.h"
#include "cli/train_log.h"

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

TEST(TrainLog, KeepsTheStepsThatWereSaved) {
  const ScratchFolder scratch;
  const auto path = scratch / "log.csv";
  {
    auto log = TrainLog::open(path, 0);
    ASSERT_TRUE(log.ok());
    for (std::uint64_t step = 1; step <= 12; ++step) {
      ASSERT_TRUE(log->add({.step = step, .loss = 2.0}, std::nullopt, 100.0).ok());
    }
  }
  std::ofstream(path, std::ios::app) << "13,1.9,,0.0";  // Cut by a kill.
  {
    auto log = TrainLog::open(path, 10);
    ASSERT_TRUE(log.ok());
    ASSERT_TRUE(log->add({.step = 11, .loss = 3.0}, 2.5, 100.0).ok());
  }
  const std::string text = read_file(path, 10000).value();
  EXPECT_NE(text.find("\n10,2.0"), std::string::npos);
  EXPECT_EQ(text.find("\n12,"), std::string::npos);
  EXPECT_TRUE(text.ends_with("\n11,3.000000,2.500000,0,0,100.0\n")) << text;
}

}  // namespace
}  // namespace recua::cli
