// Where threads are put, on machines that hwloc makes up.
#include "sys/placement.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "sys/thread_pool.h"

namespace recua::sys {
namespace {

using Cpus = std::vector<std::vector<std::uint32_t>>;

/// The machine of a description such as hwloc's lstopo --input takes.
Topology machine(const char* description) {
  ::setenv("HWLOC_SYNTHETIC", description, 1);
  const Topology out = detect_topology();
  ::unsetenv("HWLOC_SYNTHETIC");
  return out;
}

class PlacementTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (topology_library() == "not built in") GTEST_SKIP() << "built without hwloc";
  }
};

// Two packages with their memory, four cores each, two CPUs a core; siblings are neighbours.
constexpr const char* kTwoNodes = "package:2 numa:1 core:4 pu:2";

TEST_F(PlacementTest, KnowsCoresAndNodes) {
  const Topology topology = machine(kTwoNodes);
  EXPECT_EQ(topology.n_cpus, 16U);
  EXPECT_EQ(topology.n_cores, 8U);
  EXPECT_TRUE(topology.whole_machine);
  ASSERT_EQ(topology.cpus.size(), 16U);
  EXPECT_EQ(topology.cpus[0].core, topology.cpus[1].core);
  EXPECT_NE(topology.cpus[1].core, topology.cpus[2].core);
  EXPECT_EQ(topology.cpus[7].node, 0U);
  EXPECT_EQ(topology.cpus[8].node, 1U);
}

TEST_F(PlacementTest, LeavesThreadsAloneUnlessAsked) {
  const auto placement = place_threads(machine(kTwoNodes), {});
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->n_threads, 8U);
  EXPECT_TRUE(placement->cpus.empty());
}

TEST_F(PlacementTest, ARangeHoldsAllThreadsAndSetsTheirNumber) {
  const Topology topology = machine(kTwoNodes);
  const auto placement =
      place_threads(topology, {.range = PlacementRequest::Range{.first = 4, .last = 7}});
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->cpus, (Cpus{{4, 5, 6, 7}, {4, 5, 6, 7}}));
  for (const PlacementRequest::Range range : {PlacementRequest::Range{.first = 14, .last = 16},
                                              PlacementRequest::Range{.first = 3, .last = 2}}) {
    const auto bad = place_threads(topology, {.range = range});
    ASSERT_FALSE(bad.ok());
    EXPECT_EQ(bad.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(bad.error().message.find("--cpu-range"), std::string::npos) << bad.error().message;
    EXPECT_NE(bad.error().message.find("0-15"), std::string::npos) << bad.error().message;
  }
}

TEST_F(PlacementTest, StrictTakesACoreForEachThreadBeforeTheSecondCpuOfAny) {
  const Topology topology = machine(kTwoNodes);
  const auto cores = place_threads(topology, {.n_threads = 3, .strict = true});
  ASSERT_TRUE(cores.ok());
  EXPECT_EQ(cores->cpus, (Cpus{{0}, {2}, {4}}));
  const auto all = place_threads(
      topology,
      {.n_threads = 4, .range = PlacementRequest::Range{.first = 0, .last = 3}, .strict = true});
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->cpus, (Cpus{{0}, {2}, {1}, {3}}));
  const auto many = place_threads(topology, {.n_threads = 17, .strict = true});
  ASSERT_FALSE(many.ok());
  EXPECT_NE(many.error().message.find("--cpu-strict"), std::string::npos) << many.error().message;
}

TEST_F(PlacementTest, DistributesOverNodesInTurns) {
  const Topology topology = machine(kTwoNodes);
  const std::vector<std::uint32_t> first = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<std::uint32_t> second = {8, 9, 10, 11, 12, 13, 14, 15};
  for (const NumaPolicy numa : {NumaPolicy::kDistribute, NumaPolicy::kNumactl}) {
    const auto placement = place_threads(topology, {.n_threads = 3, .numa = numa});
    ASSERT_TRUE(placement.ok());
    EXPECT_EQ(placement->cpus, (Cpus{first, second, first}));
  }
  const auto strict =
      place_threads(topology, {.n_threads = 4, .strict = true, .numa = NumaPolicy::kDistribute});
  ASSERT_TRUE(strict.ok());
  EXPECT_EQ(strict->cpus, (Cpus{{0}, {8}, {2}, {10}}));
}

TEST_F(PlacementTest, IsolatesOnTheNodeThatItStartedOn) {
  const Topology topology = machine(kTwoNodes);
  const auto placement =
      place_threads(topology, {.strict = true, .numa = NumaPolicy::kIsolate, .here = 11});
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->cpus, (Cpus{{8}, {10}, {12}, {14}}));
  const auto none =
      place_threads(topology, {.range = PlacementRequest::Range{.first = 0, .last = 3},
                               .numa = NumaPolicy::kIsolate,
                               .here = 11});
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("isolate"), std::string::npos) << none.error().message;
}

// Cores of two kinds, one package: nodes and siblings count, not the order of the numbers.
TEST_F(PlacementTest, CountsCoresThatHaveOneCpu) {
  const auto placement = place_threads(machine("core:3 pu:1"), {.strict = true});
  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(placement->cpus, (Cpus{{0}, {1}, {2}}));
}

TEST(Placement, SaysWhenNobodyKnowsTheCpus) {
  const auto placement = place_threads({.n_cores = 2, .n_cpus = 4}, {.strict = true});
  ASSERT_FALSE(placement.ok());
  EXPECT_EQ(placement.error().code, ErrorCode::kUnsupported);
  EXPECT_TRUE(place_threads({.n_cores = 2, .n_cpus = 4}, {}).ok());
}

TEST(Placement, WritesRunsOfCpusShort) {
  EXPECT_EQ(cpu_list(std::vector<std::uint32_t>{0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
  EXPECT_EQ(cpu_list({}), "");
}

// In a thread of its own, which then has the affinity that it was given.
TEST(ThreadPool, RunsEachThreadOnItsCpu) {
  const Topology topology = detect_topology();
  if (topology.cpus.empty()) GTEST_SKIP() << "nobody knows the CPUs";
  const std::uint32_t first = topology.cpus.front().id;
  const std::uint32_t last = topology.cpus.back().id;
  std::jthread([&] {
    ThreadPool pool(3, {{last}, {first}, {last}});
    for (int round = 0; round < 20; ++round) {
      std::vector<std::uint32_t> seen(3);
      pool.run([&](std::size_t thread, std::size_t) { seen[thread] = current_cpu(); });
      EXPECT_EQ(seen, (std::vector<std::uint32_t>{last, first, last}));
    }
  }).join();
}

}  // namespace
}  // namespace recua::sys
