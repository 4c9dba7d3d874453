#include "cluster/plan_file.h"

#include <gtest/gtest.h>

#include "cluster/plan_test_inputs.h"

namespace recua::cluster {
namespace {

TEST(PlanFile, ComesBackAsItWas) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  const SplitPlan plan = even_plan(model, 2, 2);
  const auto read = parse_plan(plan_json(model, cluster, plan), "p.json", model, cluster);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, plan);
}

TEST(PlanFile, NamesWhatDiffersFromTheModel) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  const std::string text = plan_json(model, cluster, even_plan(model, 2, 2));
  const auto read = parse_plan(text, "p.json", test_model(6, 2048), cluster);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument);
  for (const char* words : {"p.json: model is another one", "n_layers 8 (this one has 6)",
                            "hidden_size 1024 (this one has 2048)"}) {
    EXPECT_NE(read.error().message.find(words), std::string::npos) << read.error().message;
  }
}

TEST(PlanFile, NamesMachinesThatAreNotThere) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  const std::string text = plan_json(model, cluster, even_plan(model, 2, 2));
  const auto read =
      parse_plan(text, "p.json", model, cluster_of(test_machines(3), test_link(5, 10)));
  ASSERT_FALSE(read.ok());
  EXPECT_NE(
      read.error().message.find(
          "stages[1].ranks[1].machine is \"m3\", which is not among the machines (m0, m1, m2)"),
      std::string::npos)
      << read.error().message;
}

TEST(PlanFile, KeepsTheMicroBatch) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(2), test_link(5, 10));
  SplitPlan plan = even_plan(model, 2, 1);
  plan.n_ubatch = 48;
  std::string text = plan_json(model, cluster, plan);
  const auto read = parse_plan(text, "p.json", model, cluster);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->n_ubatch, 48u);
  text.replace(text.find(" 48,"), 4, " 0,");
  const auto refused = parse_plan(text, "p.json", model, cluster);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("n_ubatch is 0, need a whole number from 1"),
            std::string::npos)
      << refused.error().message;
}

TEST(PlanFile, TellsWhichMachinesItNames) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  SplitPlan plan = even_plan(model, 2, 2);
  std::swap(plan.stages[0].ranks[0].machine, plan.stages[1].ranks[1].machine);
  const auto names = machines_of_plan(plan_json(model, cluster, plan), "p.json");
  ASSERT_TRUE(names.ok()) << names.error().message;
  EXPECT_EQ(*names, (std::vector<std::string>{"m3", "m1", "m2", "m0"}));
  const auto broken = machines_of_plan(R"({"stages": [{"ranks": [{"machine": 7}]}]})", "p.json");
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("p.json: stages[0].ranks[0].machine"), std::string::npos)
      << broken.error().message;
}

TEST(PlanFile, RefusesPlansWithHoles) {
  const ModelShape model = test_model(8);
  const ClusterShape cluster = cluster_of(test_machines(4), test_link(5, 10));
  SplitPlan plan = even_plan(model, 2, 1);
  plan.stages[1].layers.begin = 5;
  EXPECT_FALSE(parse_plan(plan_json(model, cluster, plan), "p.json", model, cluster).ok());
  EXPECT_FALSE(parse_plan("{\"recua_plan\": 2}", "p.json", model, cluster).ok());
}

}  // namespace
}  // namespace recua::cluster
