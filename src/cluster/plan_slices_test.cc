#include "cluster/plan_slices.h"

#include <gtest/gtest.h>

#include "cluster/plan_test_inputs.h"

namespace recua::cluster {
namespace {

/// The sizes of test_model(n_layers).
model::HyperParams test_hyperparams(std::uint32_t n_layers) {
  const ModelShape shape = test_model(n_layers);
  model::HyperParams hp;
  hp.n_layers = n_layers;
  hp.hidden_size = shape.hidden_size;
  hp.n_heads = shape.n_heads;
  hp.n_kv_heads = shape.n_kv_heads;
  hp.head_dim = shape.head_dim;
  hp.ffn_size = shape.ffn_size;
  hp.vocab_size = shape.vocab_size;
  return hp;
}

TEST(PlanSlices, FollowThePlanInItsOrder) {
  const ModelShape model = test_model(8);
  SplitPlan plan = even_plan(model, 2, 2);
  plan.stages[0].layers.end = plan.stages[1].layers.begin = 3;
  std::swap(plan.stages[0].ranks[0].machine, plan.stages[1].ranks[1].machine);
  const auto planned = slices_of(plan, test_hyperparams(8));
  ASSERT_TRUE(planned.ok()) << planned.error().message;
  EXPECT_EQ(planned->machines, (std::vector<std::uint32_t>{3, 1, 2, 0}));
  EXPECT_EQ(planned->n_ranks, 2u);
  ASSERT_EQ(planned->slices.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    const model::Slice& slice = planned->slices[i];
    EXPECT_EQ(slice.rank, i % 2);
    EXPECT_EQ(slice.layer_begin, i < 2 ? 0u : 3u);
    EXPECT_EQ(slice.layer_end, i < 2 ? 3u : 8u);
    EXPECT_TRUE(model::check_slice(slice, test_hyperparams(8)).ok());
    const RankShare& share = plan.stages[i / 2].ranks[i % 2];
    EXPECT_EQ(slice.shares[slice.rank].heads, (model::Range{share.heads.begin, share.heads.end}));
    EXPECT_EQ(slice.shares[slice.rank].ffn, (model::Range{share.ffn.begin, share.ffn.end}));
  }
}

TEST(PlanSlices, ShareKvHeadsBetweenRanksThatBothNeedThem) {
  const ModelShape model = test_model(4, 1024, 16, 2);
  model::HyperParams hp = test_hyperparams(4);
  hp.n_kv_heads = 2;
  const auto planned = slices_of(even_plan(model, 1, 4), hp);
  ASSERT_TRUE(planned.ok()) << planned.error().message;
  const std::vector<model::Share>& shares = planned->slices[0].shares;
  EXPECT_EQ(shares[0].kv_heads, (model::Range{0, 1}));
  EXPECT_EQ(shares[1].kv_heads, (model::Range{0, 1}));
  EXPECT_EQ(shares[3].kv_heads, (model::Range{1, 2}));
}

TEST(PlanSlices, NeedStagesOfEqualNumbersOfRanks) {
  const ModelShape model = test_model(8);
  SplitPlan plan = even_plan(model, 2, 1);
  plan.stages[1].ranks = divide_stage(model, {1.0, 1.0});
  const auto planned = slices_of(plan, test_hyperparams(8));
  ASSERT_FALSE(planned.ok());
  EXPECT_EQ(planned.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(planned.error().message.find("stages[1] has 2 ranks and stages[0] has 1"),
            std::string::npos)
      << planned.error().message;
}

TEST(PlanSlices, RefuseRanksWithoutColumns) {
  const ModelShape model = test_model(8);
  SplitPlan plan = even_plan(model, 1, 2);
  plan.stages[0].ranks[0].ffn = {.begin = 0, .end = 0};
  plan.stages[0].ranks[1].ffn = {.begin = 0, .end = model.ffn_size};
  const auto planned = slices_of(plan, test_hyperparams(8));
  ASSERT_FALSE(planned.ok());
  EXPECT_NE(planned.error().message.find("stages[0]: rank 0 has the columns 0 to 0"),
            std::string::npos)
      << planned.error().message;
}

}  // namespace
}  // namespace recua::cluster
