#include "cli/plan_report.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cluster/plan_test_inputs.h"

namespace recua::cli {
namespace {

struct Example {
  cluster::ModelShape model = cluster::test_model(8);
  cluster::ClusterShape machines =
      cluster::cluster_of(cluster::test_machines(3), cluster::test_link(5, 10));
  PlanReport report;

  Example() {
    report.model = &model;
    report.machines = &machines;
    report.n_ctx = 4096;
    report.options.workload.n_streams = 4;
    report.choice = std::move(choose_plan(model, machines, report.options).value());
    report.notes = {"a note"};
  }
};

TEST(PlanReport, ShowsPlansWithTheBestFirst) {
  Example example;
  example.report.choice.warnings = {"a warning"};
  const std::string text = plan_text(example.report);
  for (const char* words :
       {"test.gguf: 8 layers", "first token", "tokens/s x4", "one machine", "* ", "best: layers",
        "why:  ", "note: a note", "warning: a warning", "m0 to m2 (3)"}) {
    EXPECT_NE(text.find(words), std::string::npos) << words << " in\n" << text;
  }
}

TEST(PlanReport, GivesTheSameToPrograms) {
  const Example example;
  const auto json = nlohmann::json::parse(plan_report_json(example.report));
  EXPECT_EQ(json["plans"].size(), example.report.choice.plans.size());
  EXPECT_EQ(json["plans"][0]["prediction"]["answer_seconds"].get<double>(),
            example.report.choice.plans[0].prediction.answer_seconds);
  EXPECT_EQ(json["plans"][0]["stages"][0]["layers"][0], 0);
  EXPECT_EQ(json["workload"]["n_streams"], 4);
  EXPECT_EQ(json["notes"][0], "a note");
}

TEST(PlanReport, MarksSizesThatDoNotFit) {
  const Example example;
  const std::vector<ScaleRow> rows = {
      {.n_machines = 1, .fits = false},
      {.n_machines = 3, .fits = true, .best = example.report.choice.plans[0]}};
  EXPECT_NE(scale_text(example.report, rows).find("does not fit"), std::string::npos);
  const auto json = nlohmann::json::parse(scale_json(example.report, rows));
  EXPECT_FALSE(json["scale"][0].contains("prediction"));
  EXPECT_EQ(json["scale"][1]["n_machines"], 3);
}

TEST(PlanReport, WritesTimesAsPeopleDo) {
  EXPECT_EQ(seconds_text(8.5e-6), "8.50 us");
  EXPECT_EQ(seconds_text(0.0123), "12.3 ms");
  EXPECT_EQ(seconds_text(4.567), "4.57 s");
  EXPECT_EQ(seconds_text(200.0), "3 min 20 s");
  EXPECT_EQ(seconds_text(7500.0), "2 h 5 min");
  EXPECT_EQ(rate_text(12345.6), "12346");
}

}  // namespace
}  // namespace recua::cli
