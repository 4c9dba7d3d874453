// Experts of the CPU device: routing, products and the feed-forward as one operator, on every
// instruction set that this CPU has; and the plan that divides them.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"
#include "compute/cpu/expert_plan.h"
#include "compute/cpu/test_rows.h"
#include "kernels/random_weights.h"
#include "sys/cpu_features.h"

namespace recua::compute {
namespace {

using quant::DataType;

TEST(ExpertPlan, SortsPairsByExpertInTheirOrder) {
  ExpertPlan plan;
  const std::array<std::int32_t, 6> ids = {4, 1, 1, 4, 0, 1};
  plan.sort(ids, 6);
  EXPECT_EQ(std::vector<std::uint32_t>(plan.used().begin(), plan.used().end()),
            (std::vector<std::uint32_t>{0, 1, 4}));
  std::vector<std::size_t> pairs;
  for (std::size_t place = 0; place < plan.n_pairs(); ++place) pairs.push_back(plan.pair(place));
  EXPECT_EQ(pairs, (std::vector<std::size_t>{4, 1, 2, 5, 0, 3}));
  EXPECT_EQ(plan.places(1).begin, 1U);
  EXPECT_EQ(plan.places(1).end, 4U);
  EXPECT_TRUE(plan.places(5).empty());
}

TEST(ExpertPlan, GivesWholeExpertsToTheThreadThatHasLeast) {
  ExpertPlan plan;
  std::vector<std::int32_t> ids(10, 2);    // Costs 13.
  ids.insert(ids.end(), {0, 1, 3, 3, 3});  // 4, 4 and 6.
  plan.sort(ids, 5);
  EXPECT_EQ(plan.cost(), 27U);
  EXPECT_EQ(plan.divide_whole(2), 0.5);  // 13 and 14.
  EXPECT_EQ(plan.thread_of(2), 0U);
  for (const std::size_t e : {0U, 1U, 3U}) EXPECT_EQ(plan.thread_of(e), 1U) << e;
  EXPECT_DOUBLE_EQ(plan.divide_whole(3), 4.0);  // 13, where 9 would be even.
  EXPECT_EQ(plan.divide_whole(1), 0.0);
}

TEST(ExpertPlan, CutsRowsIntoRunsOfEqualCostThatMeetAtGranules) {
  Rng rng(5);
  for (int round = 0; round < 200; ++round) {
    const std::size_t n_experts = 1 + rng.below(12);
    const std::size_t n_threads = 1 + rng.below(9);
    const std::size_t n_rows = 1 + rng.below(100);
    std::vector<std::int32_t> ids(1 + rng.below(60));
    for (std::int32_t& id : ids) id = static_cast<std::int32_t>(rng.below(n_experts));
    SCOPED_TRACE(fmt::format("round {}: {} experts, {} threads, {} rows", round, n_experts,
                             n_threads, n_rows));
    ExpertPlan plan;
    plan.sort(ids, n_experts);
    const std::size_t granule = round % 2 == 0 ? 16 : 32;
    const std::size_t n_granules = (n_rows + granule - 1) / granule;
    std::vector<std::size_t> load(n_threads);
    std::size_t dearest = 0;
    for (std::size_t i = 0; i < plan.used().size(); ++i) {
      const std::size_t cost = ExpertPlan::row_cost(plan.places(plan.used()[i]).size());
      dearest = std::max(dearest, cost);
      std::size_t next = 0;
      for (std::size_t t = 0; t < n_threads; ++t) {
        const sys::Partition rows = plan.rows_of(i, n_rows, granule, t, n_threads);
        ASSERT_LE(rows.begin, rows.end);
        if (rows.empty()) continue;
        ASSERT_EQ(rows.begin, next);
        ASSERT_TRUE(rows.end % granule == 0 || rows.end == n_rows);
        next = rows.end;
        load[t] += (rows.size() + granule - 1) / granule * cost;
      }
      ASSERT_EQ(next, n_rows);
    }
    std::size_t all = 0;
    for (const std::size_t one : load) all += one;
    for (const std::size_t one : load) {
      ASSERT_LE(one, all / n_threads + 2 * dearest) << n_granules << " granules";
    }
  }
}

class CpuExpertsTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void SetUp() override {
    if (!sys::supported(GetParam())) GTEST_SKIP() << "this CPU lacks " << to_string(GetParam());
    device_ = make(2);
  }
  static std::unique_ptr<Device> make(std::size_t n_threads) {
    return make_cpu_device(
               {.n_threads = n_threads, .instruction_set = std::string(to_string(GetParam()))})
        .value();
  }
  TestRows rows(std::size_t n_rows, std::size_t n_cols) {
    return {*device_, n_rows, n_cols, &rng_};
  }

  Rng rng_{7};
  std::unique_ptr<Device> device_;
};
INSTANTIATE_TEST_SUITE_P(Sets, CpuExpertsTest,
                         ::testing::ValuesIn(sys::all_instruction_sets().begin(),
                                             sys::all_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

TEST_P(CpuExpertsTest, RoutesTheLargestExpertsInAscendingOrder) {
  const TestRows logits = rows(2, 4);
  const std::vector<float> values = {0.5F, 2.0F, 2.0F, 1.0F, 3.0F, -1.0F, 0.0F, 3.0F};
  std::copy_n(values.begin(), 4, logits.view.row(0));
  std::copy_n(values.begin() + 4, 4, logits.view.row(1));
  const auto ids = device_->allocate(16).value();
  const auto weights = device_->allocate(16).value();
  const Route route{.n_used = 2, .ids = ids.get(), .weights = weights.get()};
  const auto* id = reinterpret_cast<const std::int32_t*>(ids->host());
  const auto* weight = reinterpret_cast<const float*>(weights->host());
  device_->moe_route(logits.view, true, route);
  EXPECT_EQ((std::vector<std::int32_t>(id, id + 4)), (std::vector<std::int32_t>{1, 2, 0, 3}));
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(weight[i], 0.5F);
  device_->moe_route(logits.view, false, route);
  const double all = std::exp(-1.5) + 2 + std::exp(-1.0);
  EXPECT_FLOAT_EQ(weight[0], static_cast<float>(1.0 / all));
}

TEST_P(CpuExpertsTest, ExpertsEqualTheirMatricesOneByOne) {
  for (const DataType type : {DataType::kF32, DataType::kQ4_0, DataType::kQ6_K}) {
    const std::size_t n_experts = 5;
    const std::size_t n_in = 256;
    const std::size_t n_out = 40;
    const std::size_t n_used = 2;
    const std::size_t n_tokens = 7;
    const kernels::RandomWeights weights =
        kernels::random_weights(type, n_experts * n_out, n_in, rng_);
    const std::size_t expert_bytes = n_out * quant::row_bytes(type, n_in);
    const auto load = [&](std::size_t first, std::size_t n) {
      return device_
          ->load_weight(
              {.name = "w",
               .type = type,
               .n_in = n_in,
               .n_out = n_out,
               .n_experts = n,
               .bytes = std::span(weights.bytes).subspan(first * expert_bytes, n * expert_bytes),
               .owner = nullptr})
          .value();
    };
    const auto all = load(0, n_experts);
    const TestRows logits = rows(n_tokens, n_experts);
    const auto ids = device_->allocate(n_tokens * n_used * 4).value();
    const auto route_weights = device_->allocate(n_tokens * n_used * 4).value();
    const Route route{.n_used = n_used, .ids = ids.get(), .weights = route_weights.get()};
    device_->moe_route(logits.view, true, route);
    const auto* id = reinterpret_cast<const std::int32_t*>(ids->host());
    const auto* weight = reinterpret_cast<const float*>(route_weights->host());
    for (const bool per_pair : {false, true}) {
      const TestRows x = rows(per_pair ? n_tokens * n_used : n_tokens, n_in);
      const TestRows out = rows(n_tokens * n_used, n_out);
      device_->moe_matmul(*all, x.view, route, out.view);
      const TestRows one = rows(1, n_out);
      for (std::size_t p = 0; p < n_tokens * n_used; ++p) {
        const auto w = load(static_cast<std::size_t>(id[p]), 1);
        device_->matmul(*w, x.view.slice_rows(per_pair ? p : p / n_used, 1), one.view);
        ASSERT_EQ(std::memcmp(one.view.row(0), out.view.row(p), n_out * 4), 0) << p;
      }
      const TestRows sum = rows(n_tokens, n_out);
      device_->moe_combine(out.view, route, sum.view);
      for (std::size_t t = 0; t < n_tokens; ++t) {
        const float first = weight[2 * t] * out.at(2 * t, 3);
        ASSERT_EQ(sum.at(t, 3), std::fmaf(weight[2 * t + 1], out.at(2 * t + 1, 3), first));
      }
    }
  }
}

/// A feed-forward whose down matrix has kBefore more columns in front, as a rank's part may have.
class Experts {
 public:
  static constexpr std::size_t kBefore = 32;

  Experts(Device& device, DataType gate, DataType up, DataType down, std::size_t n_experts,
          Rng& rng)
      : n_experts_(n_experts),
        gate_(load(device, gate, kDim, kFfn, rng)),
        up_(load(device, up, kDim, kFfn, rng)),
        down_(load(device, down, kBefore + kFfn, kDim, rng)) {}

  /// out of the tokens x, which choose by logits; four operators one by one when `apart`.
  std::vector<float> run(Device& device, Rows logits, Rows x, std::size_t n_used, bool apart) {
    const std::size_t n = x.n_rows;
    const auto ids = device.allocate(n * n_used * 4).value();
    const auto weights = device.allocate(n * n_used * 4).value();
    const Route route = {.n_used = n_used, .ids = ids.get(), .weights = weights.get()};
    const TestRows in(device, n * n_used, kBefore + kFfn, nullptr);
    const TestRows up(device, n * n_used, kFfn, nullptr);
    const TestRows down(device, n * n_used, kDim, nullptr);
    const TestRows out(device, n, kDim, nullptr);
    device.moe_route(logits, true, route);
    const ExpertFeedForward ff = {.gate = gate_.get(),
                                  .up = up_.get(),
                                  .down = down_.get(),
                                  .gate_out = in.view.slice_cols(kBefore, kFfn),
                                  .up_out = up.view,
                                  .down_in = in.view,
                                  .down_out = down.view};
    if (apart) {
      device.Device::moe_feed_forward(ff, x, route, out.view);
    } else {
      device.moe_feed_forward(ff, x, route, out.view);
    }
    for (std::size_t p = 0; p < n * n_used; ++p) EXPECT_EQ(in.at(p, kBefore - 1), 0.0F);
    return out.values();
  }

  static constexpr std::size_t kDim = 512;
  static constexpr std::size_t kFfn = 224;

 private:
  std::unique_ptr<Weight> load(Device& device, DataType type, std::size_t n_in, std::size_t n_out,
                               Rng& rng) {
    bytes_.push_back(kernels::random_weights(type, n_experts_ * n_out, n_in, rng));
    return device
        .load_weight({.name = "w",
                      .type = type,
                      .n_in = n_in,
                      .n_out = n_out,
                      .n_experts = n_experts_,
                      .bytes = bytes_.back().bytes,
                      .owner = nullptr})
        .value();
  }

  std::size_t n_experts_;
  std::list<kernels::RandomWeights> bytes_;  // Those of the scalar device stay where they are.
  std::unique_ptr<Weight> gate_, up_, down_;
};

struct ExpertTypes {
  DataType gate, up, down;
};

// Whole experts to threads (many experts), rows of each to all (few), and one thread alone.
TEST_P(CpuExpertsTest, FeedForwardGivesTheBitsOfItsOperators) {
  const std::vector<ExpertTypes> all = {
      {DataType::kQ4_K, DataType::kQ4_K, DataType::kQ6_K},
      {DataType::kQ8_0, DataType::kQ8_0, DataType::kQ8_0},
      {DataType::kF16, DataType::kF16, DataType::kF32},
      {DataType::kQ4_0, DataType::kQ4_K, DataType::kQ5_0},  // Two kinds of activations.
  };
  std::vector<std::unique_ptr<Device>> devices;
  for (std::size_t n = 1; n <= 5; ++n) devices.push_back(make(n));
  for (const ExpertTypes& types : all) {
    for (const std::size_t n_experts : {3U, 16U}) {
      const std::size_t n_used = n_experts / 4 + 2;
      Experts experts(*device_, types.gate, types.up, types.down, n_experts, rng_);
      for (const std::size_t n : {1U, 2U, 5U, 40U}) {
        const TestRows x = rows(n, Experts::kDim);
        const TestRows logits = rows(n, n_experts);
        const std::vector<float> want = experts.run(*devices[0], logits.view, x.view, n_used, true);
        for (std::size_t t = 0; t < devices.size(); ++t) {
          const std::vector<float> got =
              experts.run(*devices[t], logits.view, x.view, n_used, false);
          ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0)
              << quant::traits(types.gate).name << ", " << n_experts << " experts, " << n
              << " tokens, " << t + 1 << " threads";
        }
      }
    }
  }
}

}  // namespace
}  // namespace recua::compute
