#include "cluster/step_model.h"

#include <cmath>

#include <gtest/gtest.h>

#include "base/random.h"
#include "cluster/plan_test_inputs.h"
#include "cluster/predict.h"

namespace recua::cluster {
namespace {

TEST(AllReduce, IsOneLatencyForSmallAndTwoForLarge) {
  const LinkSpec link = {.latency_seconds = 1.0, .bytes_per_second = 1000.0};
  EXPECT_EQ(all_reduce_seconds(1e6, 1, link), 0.0);
  // One shot: 1 + 3 * 100 / 1000; in halves: 2 * (1 + 0.75 * 100 / 1000).
  EXPECT_DOUBLE_EQ(all_reduce_seconds(100, 4, link), 1.3);
  EXPECT_DOUBLE_EQ(all_reduce_seconds(10000, 4, link), 2.0 * (1.0 + 7.5));
  const LinkSpec busy = {
      .latency_seconds = 1.0, .bytes_per_second = 1000.0, .message_seconds = 0.1};
  EXPECT_DOUBLE_EQ(all_reduce_seconds(100, 4, busy), 1.6);
}

TEST(StepModel, DecodeTakesAsLongAsReadingTheBytes) {
  const ModelShape model = test_model(4);
  std::vector<Machine> machines = test_machines(1);
  machines[0].speed.operator_seconds = 0.0;
  machines[0].speed.macs_per_second = 1e15;
  const ClusterShape cluster = cluster_of(machines, test_link(5, 10));
  StepModel step(model, cluster);
  const StagePlan stage = even_plan(model, 1, 1).stages[0];
  const double seconds = step.stage(stage, {.n_rows = 1, .context = 0.0}).total();
  const double bytes = static_cast<double>(model.bytes() - model.embedding.n_bytes);
  EXPECT_GT(seconds, 0.99 * bytes / 10e9);
  EXPECT_LT(seconds, 1.03 * bytes / 10e9);  // And rows that pass between operators.
}

TEST(StepModel, PrefillTakesAsLongAsItsProducts) {
  const ModelShape model = test_model(4);
  const ClusterShape cluster = cluster_of(test_machines(1), test_link(5, 10));
  StepModel step(model, cluster);
  const StagePlan stage = even_plan(model, 1, 1).stages[0];
  const double one = step.stage(stage, {.n_rows = 256, .n_outputs = 256}).total();
  const double two = step.stage(stage, {.n_rows = 512, .n_outputs = 512}).total();
  EXPECT_NEAR(two / one, 2.0, 0.02);
  const double macs = static_cast<double>(model.n_weights() - model.embedding.n_weights) * 512;
  EXPECT_GT(two, macs / 200e9);
  EXPECT_LT(two, 1.35 * macs / 200e9);  // Attention, and rows that pass between operators.
}

TEST(StepModel, UsesTheSpeedOfTheWeightsType) {
  const ModelShape model = test_model(4);
  std::vector<Machine> machines = test_machines(1);
  const StagePlan stage = even_plan(model, 1, 1).stages[0];
  const auto seconds = [&](std::vector<TypeSpeed> by_type) {
    machines[0].speed.by_type = std::move(by_type);
    const ClusterShape cluster = cluster_of(machines, test_link(5, 10));
    return StepModel(model, cluster).stage(stage, {.n_rows = 1}).total();
  };
  const double plain = seconds({});
  EXPECT_EQ(seconds({{quant::DataType::kQ4_0, 1e9, 1e9}}), plain);
  EXPECT_GT(seconds({{quant::DataType::kQ8_0, 200e9, 1e9}}), 5 * plain);
}

TEST(StepModel, WaitingForWeightsHidesBehindManyTokens) {
  const ModelShape model = test_model(4);
  std::vector<Machine> machines = test_machines(1);
  machines[0].speed.operator_seconds = 0.0;
  machines[0].speed.bytes_per_second = 1e15;
  machines[0].speed.attention_macs_per_second = 1e15;
  const StagePlan stage = even_plan(model, 1, 1).stages[0];
  const auto seconds = [&](double decode_macs, std::uint32_t n) {
    machines[0].speed.by_type = {{quant::DataType::kQ8_0, 100e9, decode_macs}};
    const ClusterShape cluster = cluster_of(machines, test_link(5, 10));
    return StepModel(model, cluster).stage(stage, {.n_rows = n, .n_outputs = n}).total();
  };
  // Nothing is waited for: n tokens take n times as long.
  EXPECT_NEAR(seconds(100e9, 4) / seconds(100e9, 1), 4.0, 1e-3);
  // One token waits eight times as long as its products take.
  const double one = seconds(12.5e9, 1) / 8;
  EXPECT_NEAR(seconds(100e9, 1) / one, 1.0, 1e-3);
  EXPECT_NEAR(seconds(12.5e9, 6) / one, std::sqrt(64.0 - 1 + 36), 1e-2);
  EXPECT_NEAR(seconds(12.5e9, 64) / one, std::sqrt(64.0 - 1 + 4096), 1e-1);
  // One token is done faster than one of many, as where only the latter was measured together.
  EXPECT_NEAR(seconds(200e9, 1) / one, 0.5, 1e-3);
  EXPECT_NEAR(seconds(200e9, 10) / one, std::sqrt(0.25 - 1 + 100), 1e-2);
}

TEST(StepModel, TwoRanksHalveTheWorkAndAddExchanges) {
  const ModelShape model = test_model(8, 4096, 32, 8);
  const ClusterShape cluster = cluster_of(test_machines(2), test_link(5, 10));
  StepModel step(model, cluster);
  const StepWork token = {.n_rows = 1, .context = 100};
  const StageSeconds one = step.stage(even_plan(model, 1, 1).stages[0], token);
  const StageSeconds two = step.stage(even_plan(model, 1, 2).stages[0], token);
  EXPECT_EQ(one.exchange, 0.0);
  EXPECT_NEAR(two.compute / one.compute, 0.5, 0.02);
  // 16 sums and that of the embedding, and the logits.
  const double sum = 5e-6 + 4096 * 4 / 10e9;
  EXPECT_NEAR(two.exchange, 17 * sum + 5e-6 + 16000 * 4 / 10e9, 1e-9);
}

TEST(StepModel, SumsOfPromptsTravelWhileOthersAreComputed) {
  const ModelShape model = test_model(8, 4096, 32, 8);
  const StagePlan stage = even_plan(model, 1, 2).stages[0];
  const double row_bytes = 4096 * 4;
  // GB/s, and how much of 16 sums of 256 rows, two at a time, computing hides.
  for (const auto& [gbytes, hidden] : {std::pair(10.0, 0.0), std::pair(0.5, 0.7)}) {
    const ClusterShape cluster = cluster_of(test_machines(2), test_link(5, gbytes));
    const StageSeconds prompt =
        StepModel(model, cluster).stage(stage, {.n_rows = 512, .n_outputs = 512});
    const LinkSpec& link = cluster.link(0, 1);
    const double whole = all_reduce_seconds(512 * row_bytes, 2, link);
    const double halves = 2.0 * all_reduce_seconds(256 * row_bytes, 2, link);
    ASSERT_LT(16 * halves, prompt.compute);
    const double logits = link.latency_seconds + 512 * 16000.0 * 4 / link.bytes_per_second;
    const double layers = hidden == 0.0 ? whole : halves;
    EXPECT_NEAR(prompt.exchange, whole + 16 * (1.0 - hidden) * layers + logits, 1e-9) << gbytes;
  }
  // Where there is less computing than there are sums, no more is hidden than it lasts; the last
  // layer sums one row.
  const ClusterShape slow = cluster_of(test_machines(2), test_link(5, 0.01));
  const LinkSpec& link = slow.link(0, 1);
  const StageSeconds bound = StepModel(model, slow).stage(stage, {.n_rows = 512, .n_outputs = 1});
  EXPECT_NEAR(bound.exchange + 0.7 * bound.compute,
              all_reduce_seconds(512 * row_bytes, 2, link) +
                  14 * 2.0 * all_reduce_seconds(256 * row_bytes, 2, link) +
                  2.0 * all_reduce_seconds(row_bytes, 2, link) + link.latency_seconds +
                  16000.0 * 4 / link.bytes_per_second,
              1e-9);
  // Rounded to 16 bits a sum is half as long.
  ClusterShape rounded = slow;
  rounded.sums = collective::WireFormat::kF16;
  const StageSeconds half = StepModel(model, rounded).stage(stage, {.n_rows = 1});
  const StageSeconds full = StepModel(model, slow).stage(stage, {.n_rows = 1});
  EXPECT_NEAR(full.exchange - half.exchange, 17 * row_bytes / 2 / link.bytes_per_second, 1e-9);
}

TEST(StepModel, ExpertsReadOnlyWhatIsTouched) {
  ModelShape model = test_model(4);
  model.n_experts = 16;
  model.n_experts_used = 2;
  const ClusterShape cluster = cluster_of(test_machines(1), test_link(5, 10));
  StepModel step(model, cluster);
  ModelShape dense = test_model(4);
  StepModel dense_step(dense, cluster);
  const StagePlan stage = even_plan(dense, 1, 1).stages[0];
  const double one = step.stage(stage, {.n_rows = 1}).total();
  EXPECT_LT(one, 0.6 * dense_step.stage(stage, {.n_rows = 1}).total());
  // Many tokens touch all experts, but each token still uses an eighth of the products.
  const double many = step.stage(stage, {.n_rows = 512}).total();
  EXPECT_LT(many, 0.6 * dense_step.stage(stage, {.n_rows = 512}).total());
}

TEST(StepModel, MachinesOfOneHostShareItsMemory) {
  const ModelShape model = test_model(4, 4096, 32, 8);
  std::vector<Machine> machines = test_machines(2);
  for (Machine& machine : machines) machine.host = 0;
  ClusterShape cluster = cluster_of(machines, test_link(1, 10));
  cluster.hosts = {{.bytes_per_second = 15e9, .macs_per_second = 0}};
  StepModel step(model, cluster);
  const SplitPlan plan = even_plan(model, 1, 2);
  const StepWork token = {.n_rows = 1};
  const double apart = step.stage(plan.stages[0], token).compute;
  const auto active = active_per_host(cluster, plan, false);
  EXPECT_EQ(active, (std::vector<std::uint32_t>{2, 2}));
  const double shared = step.stage(plan.stages[0], token, active).compute;
  EXPECT_NEAR(shared / apart, 10.0 / 7.5, 0.02);
  // Stages after one another do not disturb each other.
  EXPECT_EQ(active_per_host(cluster, even_plan(model, 2, 1), false),
            (std::vector<std::uint32_t>{1, 1}));
  EXPECT_EQ(active_per_host(cluster, even_plan(model, 2, 1), true),
            (std::vector<std::uint32_t>{2, 2}));
}

TEST(StepModel, NeverTakesLessForMoreRowsOrMoreContext) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const ModelShape model = test_model(6);
    const ClusterShape cluster = cluster_of(test_machines(3), test_link(10.0 * rng.unit(), 1));
    StepModel step(model, cluster);
    const StagePlan stage =
        even_plan(model, 1, static_cast<std::uint32_t>(1 + rng.below(3))).stages[0];
    const auto n_rows = static_cast<std::uint32_t>(1 + rng.below(100));
    const double context = 1000.0 * rng.unit();
    const double base = step.stage(stage, {.n_rows = n_rows, .context = context}).total();
    EXPECT_LE(base, step.stage(stage, {.n_rows = n_rows + 1, .context = context}).total());
    EXPECT_LE(base, step.stage(stage, {.n_rows = n_rows, .context = context + 50}).total());
  }
}

TEST(Predict, AgreesWithItsClosedForm) {
  const ModelShape model = test_model(24);
  const ClusterShape cluster = cluster_of(test_machines(12), test_link(20, 1));
  StepModel step(model, cluster);
  for (const std::uint32_t n_stages : {1U, 2U, 4U, 6U}) {
    for (const std::uint32_t n_ranks : {1U, 2U}) {
      SCOPED_TRACE(n_stages * 10 + n_ranks);
      const Workload workload = {.n_prompt = 2048, .n_streams = 6};
      const SplitPlan plan = even_plan(model, n_stages, n_ranks);
      const Prediction quick = estimate(step, plan, workload);
      const Prediction full = predict(step, plan, workload);
      EXPECT_NEAR(quick.first_token_seconds / full.first_token_seconds, 1.0, 0.05);
      EXPECT_NEAR(quick.tokens_per_second / full.tokens_per_second, 1.0, 1e-6);
      EXPECT_NEAR(quick.tokens_per_second_streams / full.tokens_per_second_streams, 1.0, 0.1);
    }
  }
}

TEST(Predict, StagesSpeedUpPromptsAndStreamsButNotOneAnswer) {
  const ModelShape model = test_model(24);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(20, 10));
  StepModel step(model, cluster);
  const Workload workload = {.n_prompt = 2048, .n_streams = 8};
  const Prediction one = predict(step, even_plan(model, 1, 1), workload);
  const Prediction four = predict(step, even_plan(model, 4, 1), workload);
  EXPECT_GT(one.first_token_seconds / four.first_token_seconds, 3.0);
  EXPECT_LT(four.tokens_per_second, one.tokens_per_second);
  EXPECT_GT(four.tokens_per_second_streams, 1.5 * four.tokens_per_second);
}

}  // namespace
}  // namespace recua::cluster
