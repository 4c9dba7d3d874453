#include "train/trainer.h"

#include <cmath>

#include "base/scratch_folder.h"
#include "model/test_models.h"
#include "model/vocab.h"
#include "train/model_file.h"
#include "train/test_run.h"

namespace recua::train {
namespace {

using TrainerTest = TestRun;

TEST_F(TrainerTest, ResumesToTheBitWithAnotherNumberOfThreads) {
  Team one = team(1);
  Trainer whole = trainer(one);
  whole.layout().initialize(5, whole.params());
  double first_loss = 0.0;
  double last_loss = 0.0;
  for (int i = 0; i < 12; ++i) {
    const auto report = whole.step();
    ASSERT_TRUE(report.ok()) << report.error().message;
    if (i == 0) first_loss = report->loss;
    last_loss = report->loss;
  }
  EXPECT_LT(last_loss, first_loss - 0.3);  // It learns.
  EXPECT_LT(whole.validate(), first_loss - 0.3);

  const CheckpointFolder folder = CheckpointFolder::open(scratch_ / "run", 2).value();
  {
    Trainer begun = trainer(one);
    begun.layout().initialize(5, begun.params());
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(begun.step().ok());
    ASSERT_TRUE(folder.save(begun.run(), "", begun.state()).ok());
    ASSERT_TRUE(begun.step().ok());  // Lost.
  }
  Team two = team(2);
  Trainer resumed = trainer(two);
  const auto loaded = folder.load("", resumed.state());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  resumed.run() = loaded->run;
  for (int i = 5; i < 12; ++i) ASSERT_TRUE(resumed.step().ok());
  EXPECT_EQ(copy(resumed.params()), copy(whole.params()));
  EXPECT_EQ(copy(resumed.state().v), copy(whole.state().v));
  EXPECT_EQ(resumed.run().position, whole.run().position);
}

TEST_F(TrainerTest, AnAdapterLearnsAndResumesToTheBit) {
  const auto file = model::open_golden("models/stories260K.gguf");
  shape_ = read_shape(*file).value();
  const LoraModel lora =
      LoraModel::create(*file, shape_,
                        {.rank = 4, .alpha = 8.0F, .targets = parse_lora_targets("all").value()})
          .value();
  Team one = team(1);
  const auto adapter = [&](Team& with) {
    return Trainer::create(with, *dataset_, shape_, options_, &lora).value();
  };
  Trainer whole = adapter(one);
  EXPECT_EQ(whole.params().size(), lora.layout().n_params());
  whole.layout().initialize(5, whole.params());
  const double before = whole.validate();
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(whole.step().ok());
  EXPECT_LT(whole.validate(), before - 0.2);

  const CheckpointFolder folder = CheckpointFolder::open(scratch_ / "run", 2).value();
  Trainer begun = adapter(one);
  begun.layout().initialize(5, begun.params());
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(begun.step().ok());
  ASSERT_TRUE(folder.save(begun.run(), "", begun.state()).ok());
  Team two = team(2);
  Trainer resumed = adapter(two);
  const auto loaded = folder.load("", resumed.state());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  resumed.run() = loaded->run;
  for (int i = 7; i < 12; ++i) ASSERT_TRUE(resumed.step().ok());
  EXPECT_EQ(copy(resumed.params()), copy(whole.params()));
}

TEST_F(TrainerTest, AccumulatesPassesAsOneBatch) {
  Team one = team(1);
  Trainer at_once = trainer(one);
  at_once.layout().initialize(5, at_once.params());
  options_.batch = 1;
  options_.accumulate = 4;
  Trainer in_parts = trainer(one);
  in_parts.layout().initialize(5, in_parts.params());
  const auto a = at_once.step();
  const auto b = in_parts.step();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->n_tokens, b->n_tokens);
  EXPECT_NEAR(a->loss, b->loss, 1e-6 * a->loss);
  EXPECT_NEAR(a->grad_norm, b->grad_norm, 1e-5 * a->grad_norm);
}

TEST_F(TrainerTest, StopsAtTheStepWhoseLossIsNoNumber) {
  Team one = team(1);
  options_.schedule.lr = 1e30;
  options_.schedule.n_warmup = 0;
  options_.adam.weight_decay = 0.0;
  Trainer diverging = trainer(one);
  diverging.layout().initialize(5, diverging.params());
  ASSERT_TRUE(diverging.step().ok());
  const std::vector<float> before = copy(diverging.params());
  const auto failed = diverging.step();
  ASSERT_FALSE(failed.ok());
  EXPECT_TRUE(failed.error().message.starts_with("step 2: the loss is ")) << failed.error().message;
  EXPECT_EQ(diverging.run().step, 1U);
  EXPECT_EQ(copy(diverging.params()), before);
}

}  // namespace
}  // namespace recua::train
