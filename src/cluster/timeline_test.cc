#include "cluster/timeline.h"

#include <gtest/gtest.h>

#include "cluster/plan_test_inputs.h"
#include "cluster/predict.h"
#include "cluster/timeline_svg.h"

namespace recua::cluster {
namespace {

Timeline prompt_timeline(const ModelShape& model, const ClusterShape& cluster,
                         const SplitPlan& plan) {
  StepModel step(model, cluster);
  const ScheduleInput input = prefill_schedule(step, plan, 512, 64);
  Timeline timeline = timeline_of(input, run_schedule(input, Record::kVisits), plan, cluster);
  timeline.title = "a prompt";
  timeline.chain_name = "micro-batch";
  return timeline;
}

TEST(Timeline, NoMachineDoesTwoThingsAtOnce) {
  const ModelShape model = test_model(8);
  for (const LinkTransport transport : {LinkTransport::kRdma, LinkTransport::kTcp}) {
    const ClusterShape cluster = cluster_of(test_machines(6), test_link(5, 0.5, transport));
    const Timeline timeline = prompt_timeline(model, cluster, even_plan(model, 3, 2));
    ASSERT_EQ(timeline.lanes.size(), 6u);
    std::vector<double> free_at(12, 0.0);  // Of each lane's processor and card.
    for (const TimelineEvent& event : timeline.events) {
      double& own = free_at[2 * event.lane + (event.on_card ? 1 : 0)];
      EXPECT_GE(event.begin, own - 1e-12);
      EXPECT_LE(event.end, timeline.end + 1e-12);
      own = event.end;
      EXPECT_EQ(event.on_card, event.what == Activity::kSend && transport == LinkTransport::kRdma);
    }
    for (const TimelineLane& lane : timeline.lanes) {
      EXPECT_GT(lane.busy_seconds, 0.0);
      EXPECT_LE(lane.busy_seconds, timeline.end);
    }
  }
}

TEST(Timeline, FoldsManyMachinesIntoStages) {
  const ModelShape model = test_model(200, 256);
  const ClusterShape cluster = cluster_of(test_machines(400), test_link(5, 10));
  const Timeline timeline = prompt_timeline(model, cluster, even_plan(model, 40, 4));
  EXPECT_EQ(timeline.lanes.size(), 40u);
  EXPECT_EQ(timeline.lanes[3].name, "stage 3: m12 and 3 more");
  EXPECT_EQ(timeline.n_stages_hidden, 0u);
  const Timeline sampled = prompt_timeline(model, cluster, even_plan(model, 200, 2));
  EXPECT_EQ(sampled.lanes.size(), 64u);
  EXPECT_EQ(sampled.n_stages_hidden, 136u);
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++n;
  return n;
}

TEST(TimelineSvg, ShowsLanesNamesAndBothColourSchemes) {
  const ModelShape model = test_model(8);
  std::vector<Machine> machines = test_machines(2);
  machines[0].name = "<a & \"b\">";
  const ClusterShape cluster = cluster_of(machines, test_link(5, 0.5));
  const std::string svg =
      timeline_svg(std::vector{prompt_timeline(model, cluster, even_plan(model, 2, 1))}, "a title");
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find("&lt;a &amp; &quot;b&quot;&gt;"), std::string::npos);
  EXPECT_NE(svg.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(svg.find(" ms</text>"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "class=\"lane\""), 2u);
  // Eight micro-batches: bars of two shades, and the first machine's card.
  const auto n_bars = [&svg](const std::string& css) {
    const std::size_t begin = svg.find("<path class=\"" + css + "\"");
    if (begin == std::string::npos) return std::size_t{0};
    return occurrences(svg.substr(begin, svg.find("/>", begin) - begin), "M");
  };
  EXPECT_EQ(n_bars("c0"), 2u * 4);
  EXPECT_EQ(n_bars("c1"), 2u * 4);
  EXPECT_EQ(n_bars("x"), 0u);
  EXPECT_EQ(n_bars("s"), 8u);
}

TEST(TimelineSvg, StaysSmallWhateverItShows) {
  const ModelShape model = test_model(64, 256);
  const ClusterShape cluster = cluster_of(test_machines(64), test_link(5, 10));
  StepModel step(model, cluster);
  const SplitPlan plan = even_plan(model, 64, 1);
  const ScheduleInput input = prefill_schedule(step, plan, 32 * 4000, 32);
  const Timeline timeline = timeline_of(input, run_schedule(input, Record::kVisits), plan, cluster);
  EXPECT_GT(timeline.events.size(), 500000u);
  const std::size_t n_bytes = timeline_svg(std::vector{timeline}, "long").size();
  EXPECT_LT(n_bytes, std::size_t{4} << 20);
}

}  // namespace
}  // namespace recua::cluster
