#include "cluster/plan_search.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "cluster/plan_test_inputs.h"

namespace recua::cluster {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

PlanChoice chosen(const ModelShape& model, const ClusterShape& cluster,
                  const SearchOptions& options = {}) {
  auto choice = choose_plan(model, cluster, options);
  if (!choice.ok()) {
    ADD_FAILURE() << choice.error().message;
    return {.plans = {{}}, .reason = {}};
  }
  return std::move(*choice);
}

double seconds(const PlanChoice& choice) { return choice.plans.front().prediction.answer_seconds; }

TEST(ChoosePlan, DividesByTensorsWhenLinksAreFast) {
  const ModelShape model = test_model(16, 4096, 32, 8);
  const PlanChoice choice = chosen(model, cluster_of(test_machines(4), test_link(1, 100)));
  EXPECT_EQ(kind_of(choice.plans[0].plan), "tensor 4");
  EXPECT_NE(choice.reason.find("times as soon as one machine"), std::string::npos) << choice.reason;
  EXPECT_TRUE(choice.warnings.empty());
}

TEST(ChoosePlan, LeavesMachinesOutWhenLinksAreSlow) {
  const ModelShape model = test_model(16);
  const ClusterShape cluster =
      cluster_of(test_machines(3), test_link(20000, 0.001, LinkTransport::kTcp));
  const PlanChoice choice = chosen(model, cluster);
  EXPECT_EQ(kind_of(choice.plans[0].plan), "one machine");
  ASSERT_EQ(choice.warnings.size(), 1u);
  EXPECT_NE(choice.warnings[0].find("fewer machines are faster: m1, m2 left out"),
            std::string::npos)
      << choice.warnings[0];
  SearchOptions all;
  all.use_all = true;
  const PlanChoice forced = chosen(model, cluster, all);
  EXPECT_EQ(forced.plans[0].plan.n_machines(), 3u);
  EXPECT_NE(forced.reason.find("ways that were asked for"), std::string::npos) << forced.reason;
  ASSERT_EQ(forced.warnings.size(), 1u);
  EXPECT_NE(forced.warnings[0].find("times as long as one machine would"), std::string::npos)
      << forced.warnings[0];
}

TEST(ChoosePlan, DividesByLayersWhenOnlyMemoryIsMissing) {
  const ModelShape model = test_model(16);
  std::vector<Machine> machines = test_machines(2, 10.0, model.bytes() * 8 / 10);
  SearchOptions options;
  options.memory = {.n_cache_tokens = 128, .n_ubatch = 1};
  const PlanChoice choice =
      chosen(model, cluster_of(machines, test_link(1000, 0.01, LinkTransport::kTcp)), options);
  EXPECT_EQ(kind_of(choice.plans[0].plan), "layers 2");
  EXPECT_NE(choice.reason.find("one machine's not being enough"), std::string::npos)
      << choice.reason;
}

TEST(ChoosePlan, GivesTheFasterRankMore) {
  const ModelShape model = test_model(16, 4096, 32, 32);
  std::vector<Machine> machines = {test_machine("fast", 30.0), test_machine("slow", 10.0)};
  SearchOptions options;
  options.n_ranks = 2;
  const PlanChoice choice = chosen(model, cluster_of(machines, test_link(1, 100)), options);
  const StagePlan& stage = choice.plans[0].plan.stages[0];
  EXPECT_EQ(stage.ranks[0].machine, 0u);
  EXPECT_EQ(stage.ranks[0].heads.size(), 24u);
  EXPECT_EQ(stage.ranks[0].ffn.size(), 3 * stage.ranks[1].ffn.size());
}

TEST(ChoosePlan, UsesShareOfTheUser) {
  const ModelShape model = test_model(12);
  SearchOptions options;
  options.split = {2, 0, 1};
  options.n_stages = 2;
  const PlanChoice choice = chosen(model, cluster_of(test_machines(3), test_link(5, 10)), options);
  const SplitPlan& plan = choice.plans[0].plan;
  ASSERT_EQ(plan.stages.size(), 2u);
  EXPECT_EQ(plan.stages[0].layers.size(), 8u);
  EXPECT_EQ(plan.stages[1].ranks[0].machine, 2u);
}

TEST(ChoosePlan, SaysWhichOverridesCanBe) {
  const ModelShape model = test_model(4);
  const ClusterShape cluster = cluster_of(test_machines(32), test_link(5, 10));
  const auto message = [&](const SearchOptions& options) {
    const auto choice = choose_plan(model, cluster, options);
    return choice.ok() ? std::string("fits") : choice.error().message;
  };
  EXPECT_NE(message({.n_ranks = 17}).find("use 1 to 16 ranks"), std::string::npos);
  EXPECT_NE(message({.n_stages = 5}).find("use 1 to 4 stages"), std::string::npos);
  EXPECT_NE(message({.n_stages = 4, .n_ranks = 16}).find("needs 64 machines"), std::string::npos);
  EXPECT_NE(message({.split = {1, 2}}).find("2 parts for 32 machines"), std::string::npos);
}

TEST(ChoosePlan, SaysWhatEachMachineLacks) {
  const auto choice = choose_plan(test_model(16, 4096, 32, 8),
                                  cluster_of(test_machines(2, 10.0, kGiB), test_link(5, 10)), {});
  ASSERT_FALSE(choice.ok());
  EXPECT_EQ(choice.error().code, ErrorCode::kResourceExhausted);
  for (const char* words : {"m0 has 1.0 GiB and would need", "m1 has", "in all", "smaller -c"}) {
    EXPECT_NE(choice.error().message.find(words), std::string::npos) << choice.error().message;
  }
}

TEST(JudgePlan, WarnsOfAPlanThatIsSlower) {
  const ModelShape model = test_model(16);
  const ClusterShape cluster =
      cluster_of(test_machines(2), test_link(20000, 0.001, LinkTransport::kTcp));
  const auto judged = judge_plan(model, cluster, {}, even_plan(model, 1, 2));
  ASSERT_TRUE(judged.ok());
  EXPECT_EQ(judged->plans.size(), 1u);
  ASSERT_EQ(judged->warnings.size(), 1u);
  EXPECT_NE(judged->warnings[0].find("times as long as one machine would"), std::string::npos);
  EXPECT_FALSE(judge_plan(model, cluster, {}, even_plan(model, 3, 1)).ok());
}

struct Random {
  ModelShape model;
  std::vector<Machine> machines;
  std::vector<double> latency_us;  // Of each machine's link to everybody: the larger one counts.
  SearchOptions options;

  explicit Random(std::uint64_t seed) {
    Rng rng(seed);
    const auto n_kv = static_cast<std::uint32_t>(1U << rng.below(4));
    model = test_model(static_cast<std::uint32_t>(1 + rng.below(24)), 512,
                       n_kv * (1U << rng.below(2)), n_kv);
    const std::uint64_t bytes = model.bytes();
    for (std::uint64_t i = 0; i < 2 + rng.below(3); ++i) {
      machines.push_back(test_machine("m" + std::to_string(i), 1.0 + 20.0 * rng.unit(),
                                      bytes / 8 + rng.below(bytes) + kGiB / 20));
      latency_us.push_back(rng.below(3) == 0 ? 2000.0 : 1.0 + 50.0 * rng.unit());
    }
    options.memory = {.n_cache_tokens = 256, .n_ubatch = 64};
    options.workload = {.n_prompt = static_cast<std::uint32_t>(1 + rng.below(1000)),
                        .n_generate = static_cast<std::uint32_t>(1 + rng.below(200)),
                        .n_streams = static_cast<std::uint32_t>(1 + rng.below(4)),
                        .n_ubatch_max = 64};
  }
  [[nodiscard]] ClusterShape cluster(std::size_t n) const {
    ClusterShape out =
        cluster_of({machines.begin(), machines.begin() + static_cast<long>(n)}, test_link(1, 5));
    for (std::uint32_t a = 0; a < n; ++a) {
      for (std::uint32_t b = 0; b < n; ++b) {
        if (a != b) out.set_link(a, b, test_link(std::max(latency_us[a], latency_us[b]), 5));
      }
    }
    return out;
  }
};

TEST(ChoosePlan, NeverExceedsMemoryAndCoversTheModel) {
  std::size_t n_fit = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const Random random(seed);
    const ClusterShape cluster = random.cluster(random.machines.size());
    const auto choice = choose_plan(random.model, cluster, random.options);
    if (!choice.ok()) {
      EXPECT_EQ(choice.error().code, ErrorCode::kResourceExhausted) << choice.error().message;
      continue;
    }
    ++n_fit;
    for (const RankedPlan& plan : choice->plans) {
      const auto checked = check_plan(random.model, cluster, plan.plan);
      EXPECT_TRUE(checked.ok()) << checked.error().message;
      const auto fits = check_memory(random.model, cluster, plan.plan, random.options.memory);
      EXPECT_TRUE(fits.ok()) << fits.error().message;
    }
  }
  EXPECT_GT(n_fit, 100u);
  EXPECT_LT(n_fit, 300u);
}

// Whatever the machine and its links, it may be left out.
TEST(ChoosePlan, IsNeverSlowerWithOneMachineMore) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const Random random(seed);
    const std::size_t n = random.machines.size();
    const auto with = choose_plan(random.model, random.cluster(n), random.options);
    const auto without = choose_plan(random.model, random.cluster(n - 1), random.options);
    if (!without.ok()) continue;
    ASSERT_TRUE(with.ok());
    // Plans are sifted by estimates, which are a little off.
    EXPECT_LT(seconds(*with), 1.01 * seconds(*without));
  }
}

TEST(ChoosePlan, IsNeverSlowerWithMoreOfTheSame) {
  const ModelShape model = test_model(32, 4096, 32, 8);
  double before = 1e30;
  for (const std::size_t n : {1U, 2U, 3U, 5U, 7U, 8U, 9U, 12U, 16U, 31U, 64U, 200U}) {
    SCOPED_TRACE(n);
    ClusterShape cluster = cluster_of(test_machines(n), test_link(10, 3));
    const double now = seconds(chosen(model, cluster));
    EXPECT_LT(now, 1.001 * before);
    before = now;
  }
}

TEST(ChoosePlan, LeavesOutAFastMachineOnASlowLink) {
  const ModelShape model = test_model(16, 4096, 32, 8);
  std::vector<Machine> machines = test_machines(12);
  machines[7].speed = test_machine("", 11.0).speed;
  ClusterShape cluster = cluster_of(machines, test_link(2, 10));
  for (std::uint32_t m = 0; m < 12; ++m) {
    if (m != 7) cluster.set_link(7, m, test_link(50000, 0.001, LinkTransport::kTcp));
  }
  const PlanChoice choice = chosen(model, cluster);
  EXPECT_GE(choice.plans[0].plan.n_machines(), 8u);
  for (const StagePlan& stage : choice.plans[0].plan.stages) {
    for (const RankShare& rank : stage.ranks) EXPECT_NE(rank.machine, 7u);
  }
}

TEST(ChoosePlan, KeepsRanksOnIslandsOfFastLinks) {
  const ModelShape model = test_model(32, 4096, 32, 8);
  // Two islands of 5 that only memory brings together.
  ClusterShape cluster;
  cluster.machines = test_machines(10, 10.0, model.bytes() / 6);
  cluster.n_groups = 2;
  for (std::uint32_t m = 0; m < 10; ++m) cluster.machines[m].group = m % 2;
  cluster.links.assign(4, test_link(2, 10));
  cluster.coordinator_links.assign(2, test_link(50, 1));
  cluster.set_link(0, 1, test_link(5000, 0.1, LinkTransport::kTcp));
  SearchOptions options;
  options.memory = {.n_cache_tokens = 256, .n_ubatch = 16};
  const PlanChoice choice = chosen(model, cluster, options);
  for (const StagePlan& stage : choice.plans[0].plan.stages) {
    for (const RankShare& rank : stage.ranks) {
      EXPECT_EQ(cluster.machines[rank.machine].group,
                cluster.machines[stage.ranks[0].machine].group);
    }
  }
}

TEST(ChoosePlan, GivesTheSamePlanForTheSameInputs) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const Random random(seed);
    const ClusterShape cluster = random.cluster(random.machines.size());
    const auto a = choose_plan(random.model, cluster, random.options);
    const auto b = choose_plan(random.model, cluster, random.options);
    ASSERT_EQ(a.ok(), b.ok());
    if (!a.ok()) continue;
    ASSERT_EQ(a->plans.size(), b->plans.size());
    for (std::size_t i = 0; i < a->plans.size(); ++i) EXPECT_EQ(a->plans[i].plan, b->plans[i].plan);
    EXPECT_EQ(a->reason, b->reason);
  }
}

TEST(ChoosePlan, TakesAThousandMachines) {
  const ModelShape model = test_model(80, 8192, 64, 8);
  ClusterShape cluster;
  cluster.machines = test_machines(1000, 100.0, 4 * kGiB);
  cluster.n_groups = 1;
  cluster.links.assign(1, test_link(5, 20));
  cluster.coordinator_links.assign(1, test_link(50, 1));
  SearchOptions options;
  options.workload.n_streams = 16;
  const PlanChoice choice = chosen(model, cluster, options);
  EXPECT_GT(choice.plans[0].plan.n_machines(), 20u);
}

// Stages of different numbers of ranks cannot be run, and are not planned where plans are to run.
TEST(PlanSearch, KeepsStagesEqualWhenAsked) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(3), test_link(5, 10));
  SearchOptions options;
  options.n_stages = 2;
  options.use_all = true;
  const auto unequal = choose_plan(model, cluster, options);
  ASSERT_TRUE(unequal.ok()) << unequal.error().message;
  EXPECT_EQ(kind_of(unequal->plans.front().plan), "layers 2 x tensor 1 to 2");
  options.equal_ranks = true;
  EXPECT_FALSE(choose_plan(model, cluster, options).ok());
  options.use_all = false;
  const auto equal = choose_plan(model, cluster, options);
  ASSERT_TRUE(equal.ok()) << equal.error().message;
  EXPECT_EQ(kind_of(equal->plans.front().plan), "layers 2");
}

}  // namespace
}  // namespace recua::cluster
