#include "cli/bench_limits.h"

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

using quant::DataType;

/// One layer of a million weights as Q8_0, an output of half a million.
cluster::ModelShape small_model() {
  cluster::ModelShape model;
  model.n_heads = 4;
  model.n_kv_heads = 2;
  model.head_dim = 32;
  model.kv_token_bytes = 256;
  const cluster::MatrixShape ffn = {
      .type = DataType::kQ8_0, .n_weights = 1000000, .n_bytes = 1062500};
  model.layers.resize(1);
  model.layers[0].ffn = {ffn};
  model.output = {.type = DataType::kQ8_0, .n_weights = 500000, .n_bytes = 531250};
  return model;
}

cluster::MachineSpeed limits(double bytes, double macs) {
  return {.bytes_per_second = bytes,
          .by_type = {{.type = DataType::kQ8_0, .macs_per_second = macs}},
          .attention_macs_per_second = 1e30};
}

TEST(BenchLimits, OneTokenIsLimitedByBytesOfWeightsAndCache) {
  const BenchLimit limit = limit_of(small_model(), limits(1e9, 1e30), {.n_gen = 1}, 512);
  EXPECT_TRUE(limit.by_memory);
  EXPECT_NEAR(limit.tokens_per_second, 1e9 / (1593750 + 256), 0.01);
  const BenchLimit deep =
      limit_of(small_model(), limits(1e9, 1e30), {.n_gen = 1, .n_depth = 1000}, 512);
  EXPECT_NEAR(deep.tokens_per_second, 1e9 / (1593750 + 256 * 1001), 0.01);
}

TEST(BenchLimits, APromptIsLimitedByProductsAndHasOneOutput) {
  const BenchLimit limit = limit_of(small_model(), limits(1e15, 1e12), {.n_prompt = 512}, 512);
  EXPECT_FALSE(limit.by_memory);
  EXPECT_NEAR(limit.tokens_per_second, 512 / ((512 * 1e6 + 5e5) / 1e12), 1.0);
}

TEST(BenchLimits, SequencesTogetherReadTheWeightsOnce) {
  const auto speed = limits(1e9, 1e30);
  const BenchTest together = {.n_gen = 10, .n_parallel = 8};
  const BenchTest apart = {.n_gen = 10, .n_parallel = 8, .apart = true};
  const double of_eight = limit_of(small_model(), speed, together, 512).tokens_per_second;
  const double of_one = limit_of(small_model(), speed, apart, 512).tokens_per_second;
  EXPECT_GT(of_eight, 7.8 * of_one);
  EXPECT_LT(of_eight, 8.0 * of_one);  // Each has a cache of its own.
}

TEST(BenchLimits, OfExpertsThoseThatTokensChooseAreRead) {
  cluster::ModelShape model = small_model();
  model.n_experts = 8;
  model.n_experts_used = 2;
  const BenchLimit limit = limit_of(model, limits(1e9, 1e30), {.n_gen = 1}, 512);
  EXPECT_NEAR(limit.tokens_per_second, 1e9 / (1062500 / 4.0 + 531250 + 256), 0.01);
}

TEST(BenchLimits, EveryTypeOfWideKernelsHasASequenceAndScalarOnesHaveNone) {
  for (const DataType type : quant::kAllDataTypes) {
    EXPECT_FALSE(multiply_add_of(sys::InstructionSet::kScalar, type).has_value());
    EXPECT_FALSE(multiply_add_of(sys::InstructionSet::kI8mm, type).has_value());
    EXPECT_TRUE(multiply_add_of(sys::InstructionSet::kAvx2, type).has_value());
  }
}

TEST(BenchLimits, BetweenTwoTimesMemoryIsTheirMeanAndPeaksTheLarger) {
  const auto both = limits_between(limits(2, 3), limits(1, 5));
  EXPECT_EQ(both.bytes_per_second, 1.5);
  EXPECT_EQ(both.by_type[0].macs_per_second, 5);
}

}  // namespace
}  // namespace recua::cli
