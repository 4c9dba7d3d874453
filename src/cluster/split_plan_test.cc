#include "cluster/split_plan.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "cluster/plan_test_inputs.h"

namespace recua::cluster {
namespace {

TEST(Divide, FollowsTheWeightsInWholeGranules) {
  const auto parts = divide(128, 32, {3.0, 1.0});
  EXPECT_EQ(parts[0], (IndexRange{.begin = 0, .end = 96}));
  EXPECT_EQ(parts[1], (IndexRange{.begin = 96, .end = 128}));
}

TEST(Divide, CoversEverythingOnceWithNobodyLeftOut) {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const auto granule = static_cast<std::uint32_t>(1 + rng.below(40));
    const auto n_parts = 1 + rng.below(9);
    const auto n =
        static_cast<std::uint32_t>(granule * (n_parts + rng.below(100)) + rng.below(granule));
    std::vector<double> weights;
    for (std::uint64_t i = 0; i < n_parts; ++i) weights.push_back(1e-6 + rng.unit());
    std::uint32_t next = 0;
    for (const IndexRange& part : divide(n, granule, weights)) {
      EXPECT_EQ(part.begin, next);
      EXPECT_GE(part.size(), granule);
      next = part.end;
    }
    EXPECT_EQ(next, n);
  }
}

TEST(DivideStage, KeepsHeadsWithTheirKvHead) {
  const ModelShape model = test_model(2, 1024, 16, 4);
  for (const RankShare& rank : divide_stage(model, {1, 1, 1})) {
    EXPECT_EQ(rank.heads.begin % 4, 0u);
    EXPECT_EQ(rank.heads.end % 4, 0u);
  }
}

TEST(DivideStage, ReplicatesKvHeadsWhenThereAreMoreRanks) {
  const ModelShape model = test_model(2, 1024, 16, 4);
  const auto ranks = divide_stage(model, std::vector<double>(8, 1.0));
  EXPECT_EQ(ranks[0].heads.size(), 2u);
  EXPECT_EQ(kv_heads_of(model, ranks[0].heads), kv_heads_of(model, ranks[1].heads));
  const auto uneven = divide_stage(model, std::vector<double>(5, 1.0));
  EXPECT_EQ(uneven.back().heads.end, 16u);
}

TEST(CheckPlan, AcceptsEvenSplitsOfAnySize) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(16), test_link(5, 10));
  for (const std::uint32_t n_stages : {1U, 2U, 3U, 8U}) {
    for (const std::uint32_t n_ranks : {1U, 2U}) {
      const auto checked = check_plan(model, cluster, even_plan(model, n_stages, n_ranks));
      EXPECT_TRUE(checked.ok()) << checked.error().message;
    }
  }
}

TEST(CheckPlan, NamesWhatIsWrong) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  const auto message = [&](const SplitPlan& plan) {
    const auto checked = check_plan(model, cluster, plan);
    return checked.ok() ? std::string("fits") : checked.error().message;
  };
  SplitPlan plan = even_plan(model, 2, 2);
  plan.stages[1].layers.begin = 5;
  EXPECT_NE(message(plan).find("stage 1 has the layers 5 up to 8, but the next one to give is 4"),
            std::string::npos);
  plan = even_plan(model, 2, 2);
  plan.stages[1].layers.end = 7;
  EXPECT_NE(message(plan).find("gives 7 layers, but the model has 8"), std::string::npos);
  plan = even_plan(model, 2, 2);
  plan.stages[1].ranks[0].machine = 0;
  EXPECT_NE(message(plan).find("m0, which has another share"), std::string::npos);
  plan = even_plan(model, 2, 2);
  plan.stages[0].ranks[1].ffn.begin += 1;
  EXPECT_NE(message(plan).find("4096 feed-forward columns"), std::string::npos);
  plan = even_plan(test_model(8, 1024, 32, 4), 1, 20);
  EXPECT_NE(message(plan).find("use 1 to 16 ranks"), std::string::npos);
}

TEST(MemoryNeed, SharesAddUpToTheModel) {
  const ModelShape model = test_model(8);
  const MemoryOptions options = {.n_cache_tokens = 1000, .n_ubatch = 16};
  const std::uint64_t alone =
      memory_need(model, even_plan(model, 1, 1).stages[0], 0, options).weights;
  EXPECT_EQ(alone, model.bytes());
  for (const std::uint32_t n_ranks : {2U, 4U}) {
    const SplitPlan plan = even_plan(model, 2, n_ranks);
    std::uint64_t weights = 0;
    std::uint64_t cache = 0;
    for (const StagePlan& stage : plan.stages) {
      for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
        weights += memory_need(model, stage, r, options).weights;
        cache += memory_need(model, stage, r, options).cache;
      }
    }
    EXPECT_GE(weights, model.bytes());  // Norms are on every rank.
    EXPECT_LT(static_cast<double>(weights), 1.002 * static_cast<double>(model.bytes()));
    EXPECT_EQ(cache, 8 * 1000 * model.kv_token_bytes);
  }
}

TEST(MemoryNeed, HoldsATiedTableOnceWhereBothEndsAre) {
  ModelShape model = test_model(4);
  model.tied = true;
  const auto weights = [&](const SplitPlan& plan, std::size_t stage) {
    return memory_need(model, plan.stages[stage], 0, {}).weights;
  };
  EXPECT_EQ(weights(even_plan(model, 1, 1), 0), model.bytes());
  const SplitPlan two = even_plan(model, 2, 1);
  EXPECT_EQ(weights(two, 0) + weights(two, 1), model.bytes() + model.embedding.n_bytes);
}

TEST(CheckMemory, SaysWhoLacksHowMuch) {
  const ModelShape model = test_model(8);
  std::vector<Machine> machines = test_machines(2);
  machines[1].memory_bytes = 1 << 20;
  const auto checked =
      check_memory(model, cluster_of(machines, test_link(5, 10)), even_plan(model, 2, 1), {});
  ASSERT_FALSE(checked.ok());
  EXPECT_EQ(checked.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(checked.error().message.find("m1 has 1.0 MiB and would need"), std::string::npos)
      << checked.error().message;
  EXPECT_EQ(checked.error().message.find("m0"), std::string::npos);
}

TEST(Describe, ShortensLongPlans) {
  const ModelShape model = test_model(40);
  const ClusterShape cluster = cluster_of(test_machines(40), test_link(5, 10));
  EXPECT_EQ(describe(even_plan(model, 2, 1), cluster), "layers 0-19 on m0 | 20-39 on m1");
  EXPECT_EQ(kind_of(even_plan(model, 2, 1)), "layers 2");
  EXPECT_EQ(kind_of(even_plan(model, 1, 1)), "one machine");
  EXPECT_EQ(kind_of(even_plan(model, 1, 4)), "tensor 4");
  EXPECT_EQ(kind_of(even_plan(model, 2, 4)), "layers 2 x tensor 4");
  const std::string text = describe(even_plan(model, 40, 1), cluster);
  EXPECT_LT(text.size(), 200u) << text;
  EXPECT_NE(text.find("33 stages more"), std::string::npos) << text;
}

}  // namespace
}  // namespace recua::cluster
