#include "cluster/measurements.h"

#include <gtest/gtest.h>

#include "cluster/plan_test_inputs.h"

namespace recua::cluster {
namespace {

class Fake final : public Measurements {
 public:
  std::optional<MachineSpeed> speed(std::size_t worker) override {
    if (worker == 2) return std::nullopt;  // "unknown"
    return test_machine("", 10.0).speed;
  }
  std::optional<MachineSpeed> host_speed(const std::string&, std::uint32_t n_threads) override {
    n_threads_asked = n_threads;
    return test_machine("", 15.0).speed;
  }
  std::optional<LinkSpec> coordinator_link(std::size_t worker) override {
    if (worker == 3) return std::nullopt;
    return test_link(10.0 * static_cast<double>(worker + 1), 1);
  }
  std::optional<LinkSpec> link(std::size_t a, std::size_t b) override {
    if (a == 0 && b == 1) return test_link(2, 20);
    return std::nullopt;
  }
  MachineSpeed assumed_speed(std::size_t) override { return test_machine("", 3.0).speed; }

  std::uint32_t n_threads_asked = 0;
};

TEST(MeasuredCluster, SaysWhatWasAssumed) {
  const std::vector<OfferedWorker> workers = {
      {"a", "h", 1, 2}, {"b", "h", 1, 3}, {"unknown", "", 1, 4}, {"lost", "", 1, 4}};
  Fake fake;
  const MeasuredCluster cluster = measured_cluster(workers, fake);
  EXPECT_EQ(cluster.shape.machines[2].speed, test_machine("", 3.0).speed);
  EXPECT_EQ(cluster.shape.link(0, 1), test_link(2, 20));
  EXPECT_DOUBLE_EQ(cluster.shape.link(0, 2).latency_seconds, 30e-6);
  EXPECT_DOUBLE_EQ(cluster.shape.coordinator_link(3).bytes_per_second, 125e6);
  EXPECT_EQ(fake.n_threads_asked, 5u);
  EXPECT_EQ(cluster.shape.machines[0].host, 0u);
  EXPECT_EQ(cluster.shape.machines[1].host, 0u);
  EXPECT_EQ(cluster.shape.machines[2].host, kOwnHost);
  EXPECT_DOUBLE_EQ(cluster.shape.hosts.at(0).bytes_per_second, 15e9);
  ASSERT_EQ(cluster.notes.size(), 3u);
  EXPECT_NE(cluster.notes[0].find("unknown"), std::string::npos);
  EXPECT_NE(cluster.notes[1].find("lost"), std::string::npos);
}

}  // namespace
}  // namespace recua::cluster
