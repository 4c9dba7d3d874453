#include "cluster/plan.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::cluster {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

ModelCost even_model(std::size_t n_layers, std::uint64_t layer_bytes) {
  ModelCost cost;
  cost.layer_bytes.assign(n_layers, layer_bytes);
  return cost;
}

TEST(PlanLayers, DividesEvenlyOverEqualWorkers) {
  const std::vector<WorkerOffer> workers = {{"a", 8 * kGiB}, {"b", 8 * kGiB}};
  const auto plan = plan_layers(even_model(10, kGiB), workers, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slices[0].layer_end, 5u);
  EXPECT_EQ(plan->slices[1].layer_begin, 5u);
  EXPECT_TRUE(plan->slices[0].is_first());
  EXPECT_TRUE(plan->slices[1].is_last());
}

TEST(PlanLayers, GivesTheBiggerWorkerMoreLayers) {
  const std::vector<WorkerOffer> workers = {{"a", 6 * kGiB}, {"b", 3 * kGiB}};
  const auto plan = plan_layers(even_model(6, kGiB), workers, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slices[0].layer_end, 4u);
}

TEST(PlanLayers, CountsEmbeddingsAndOutputWhereTheyLie) {
  ModelCost cost = even_model(4, kGiB);
  cost.first_bytes = 2 * kGiB;
  const std::vector<WorkerOffer> workers = {{"a", 10 * kGiB}, {"b", 10 * kGiB}};
  const auto plan = plan_layers(cost, workers, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slices[0].layer_end, 1u);
  EXPECT_EQ(plan->slice_bytes[0], 3 * kGiB);
}

TEST(PlanLayers, FollowsTheUsersSplit) {
  const std::vector<WorkerOffer> workers = {{"a", 100 * kGiB}, {"b", 100 * kGiB}};
  const std::vector<double> split = {2, 1};
  const auto plan = plan_layers(even_model(9, kGiB), workers, split);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slices[0].layer_end, 6u);
}

TEST(PlanLayers, SaysWhatIsMissingWhenTheModelDoesNotFit) {
  const std::vector<WorkerOffer> workers = {{"box1:7500", kGiB}, {"box2:7500", kGiB}};
  const auto plan = plan_layers(even_model(10, kGiB), workers, {});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(plan.error().message.find("box1:7500 has 1.0 GiB"), std::string::npos)
      << plan.error().message;
  EXPECT_NE(plan.error().message.find("10.0 GiB in all"), std::string::npos);
}

TEST(PlanLayers, RefusesMoreWorkersThanLayersAndWrongSplits) {
  const std::vector<WorkerOffer> workers(3, {"w", kGiB});
  EXPECT_EQ(plan_layers(even_model(2, 1), workers, {}).error().code, ErrorCode::kInvalidArgument);
  const std::vector<double> two = {1, 1};
  EXPECT_EQ(plan_layers(even_model(5, 1), workers, two).error().code, ErrorCode::kInvalidArgument);
  const std::vector<double> negative = {1, -1, 1};
  EXPECT_EQ(plan_layers(even_model(5, 1), workers, negative).error().code,
            ErrorCode::kInvalidArgument);
}

TEST(PlanLayers, CoversEveryLayerOnceForAnyMachines) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    ModelCost cost;
    for (std::uint64_t i = 0; i < 1 + rng.below(40); ++i) {
      cost.layer_bytes.push_back(1 + rng.below(1000));
    }
    cost.first_bytes = rng.below(3000);
    cost.last_bytes = rng.below(3000);
    std::vector<WorkerOffer> workers;
    for (std::uint64_t i = 0; i < 1 + rng.below(cost.layer_bytes.size()); ++i) {
      workers.push_back({"w", 100'000 + rng.below(100'000)});
    }
    std::vector<double> split;
    if (rng.below(2) == 0) {
      for (std::size_t i = 0; i < workers.size(); ++i) split.push_back(0.1 + rng.unit());
    }
    const auto plan = plan_layers(cost, workers, split);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    ASSERT_EQ(plan->slices.size(), workers.size());
    std::uint32_t next = 0;
    for (const model::Slice& slice : plan->slices) {
      EXPECT_EQ(slice.layer_begin, next);
      EXPECT_GT(slice.layer_end, slice.layer_begin);
      next = slice.layer_end;
    }
    EXPECT_EQ(next, cost.layer_bytes.size());
  }
}

TEST(FormatBytes, UsesTheLargestFittingUnit) {
  EXPECT_EQ(format_bytes(12), "12 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(3 * kGiB), "3.0 GiB");
}

}  // namespace
}  // namespace recua::cluster
