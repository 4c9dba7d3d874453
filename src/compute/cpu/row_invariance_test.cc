// The result of a row depends on that row, its sequence and the weights only: the same bits for any
// batch size, any place in the batch, and any number of threads.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"
#include "compute/cpu/test_rows.h"
#include "kernels/random_weights.h"
#include "sys/cpu_features.h"

namespace recua::compute {
namespace {

using quant::DataType;

constexpr std::size_t kBatchMax = 40;

class RowInvarianceTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void SetUp() override {
    if (!sys::supported(GetParam())) GTEST_SKIP() << "this CPU lacks " << to_string(GetParam());
    for (std::size_t n = 1; n <= 4; ++n) {
      devices_.push_back(
          make_cpu_device({.n_threads = n, .instruction_set = std::string(to_string(GetParam()))})
              .value());
    }
    plain_ = make_cpu_device({.n_threads = 1,
                              .instruction_set = std::string(to_string(GetParam())),
                              .repack = false})
                 .value();
  }
  Device& device(std::size_t n_threads) { return *devices_[n_threads - 1]; }

  // step(device, first, n) computes the rows [first, first + n) as one batch, into the
  // same rows of out. Checks that they equal those of single rows on one thread.
  template <class Step>
  void check(const TestRows& out, Step&& step) {
    for (std::size_t r = 0; r < kBatchMax; ++r) step(device(1), r, std::size_t{1});
    const std::vector<float> want = out.values();
    for (std::size_t n_threads = 1; n_threads <= 4; ++n_threads) {
      // The plain loops of the scalar kernels know no tiles: fewer sizes show what there is.
      const std::size_t step_size = GetParam() == sys::InstructionSet::kScalar ? 13 : 1;
      for (std::size_t n = 1; n <= kBatchMax; n += step_size) {
        const std::size_t first = rng_.below(kBatchMax - n + 1);
        for (std::size_t r = first; r < first + n; ++r) {
          std::fill_n(out.view.row(r), out.view.n_cols, -1.0F);
        }
        step(device(n_threads), first, n);
        ASSERT_EQ(std::memcmp(out.values().data(), want.data(), want.size() * sizeof(float)), 0)
            << n_threads << " threads, rows " << first << " + " << n;
      }
    }
  }

  std::unique_ptr<Weight> load(DataType type, std::size_t n_in, std::size_t n_out,
                               std::size_t n_experts, bool repack = true) {
    weights_ = kernels::random_weights(type, n_experts * n_out, n_in, rng_);
    return (repack ? device(1) : *plain_)
        .load_weight({.name = "w",
                      .type = type,
                      .n_in = n_in,
                      .n_out = n_out,
                      .n_experts = n_experts,
                      .bytes = weights_.bytes,
                      .owner = nullptr})
        .value();
  }

  Rng rng_{3};
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<Device> plain_;  // Leaves weights as they are.
  kernels::RandomWeights weights_;
};
INSTANTIATE_TEST_SUITE_P(Sets, RowInvarianceTest,
                         ::testing::ValuesIn(sys::all_instruction_sets().begin(),
                                             sys::all_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

// Wide enough that even a single row is shared out, tall enough for ragged shares.
TEST_P(RowInvarianceTest, MatmulOfEveryType) {
  for (const DataType type : quant::kAllDataTypes) {
    SCOPED_TRACE(quant::traits(type).name);
    const std::size_t block = quant::traits(type).block_size;
    const std::size_t n_in = block == 1 ? 301 : 512;
    const std::size_t n_out = 16 * 25 + 3;
    const auto w = load(type, n_in, n_out, 1);
    const TestRows x(device(1), kBatchMax, n_in, &rng_);
    const TestRows out(device(1), kBatchMax, n_out, nullptr);
    check(out, [&](Device& device, std::size_t first, std::size_t n) {
      device.matmul(*w, x.view.slice_rows(first, n), out.view.slice_rows(first, n));
    });
  }
}

TEST_P(RowInvarianceTest, MatmulOfWeightsThatAreNotRepacked) {
  for (const DataType type : quant::kAllDataTypes) {
    SCOPED_TRACE(quant::traits(type).name);
    const std::size_t n_in = quant::traits(type).block_size == 1 ? 301 : 512;
    const auto w = load(type, n_in, 403, 1, false);
    const TestRows x(device(1), kBatchMax, n_in, &rng_);
    const TestRows out(device(1), kBatchMax, 403, nullptr);
    check(out, [&](Device& device, std::size_t first, std::size_t n) {
      device.matmul(*w, x.view.slice_rows(first, n), out.view.slice_rows(first, n));
    });
  }
}

TEST_P(RowInvarianceTest, MatmulByExperts) {
  for (const DataType type : {DataType::kF16, DataType::kQ8_0, DataType::kQ4_K}) {
    SCOPED_TRACE(quant::traits(type).name);
    const std::size_t n_used = 2;
    const std::size_t n_experts = 6;
    const auto w = load(type, 256, 83, n_experts);
    const TestRows x(device(1), kBatchMax, 256, &rng_);
    const TestRows logits(device(1), kBatchMax, n_experts, &rng_);
    const TestRows out(device(1), kBatchMax, 83, nullptr);
    const auto ids = device(1).allocate(kBatchMax * n_used * 4).value();
    const auto weights = device(1).allocate(kBatchMax * n_used * 4).value();
    const TestRows pairs(device(1), kBatchMax * n_used, 83, nullptr);
    check(out, [&](Device& device, std::size_t first, std::size_t n) {
      const Route route{.n_used = n_used, .ids = ids.get(), .weights = weights.get()};
      device.moe_route(logits.view.slice_rows(first, n), true, route);
      device.moe_matmul(*w, x.view.slice_rows(first, n), route,
                        pairs.view.slice_rows(0, n * n_used));
      device.moe_combine(pairs.view.slice_rows(0, n * n_used), route,
                         out.view.slice_rows(first, n));
    });
  }
}

// Rows of two sequences whose pages lie differently; contexts longer than one piece.
TEST_P(RowInvarianceTest, AttentionOverPages) {
  for (const DataType type : {DataType::kF16, DataType::kF32, DataType::kQ8_0, DataType::kQ4_0}) {
    for (const std::uint32_t window : {0U, 90U}) {
      SCOPED_TRACE(fmt::format("{} window {}", quant::traits(type).name, window));
      const std::size_t n_tokens = 600;
      const std::size_t n_heads = 6;
      const std::size_t head_dim = 32;
      TestCache cache(device(1), type, 2, head_dim, 16, 2 * n_tokens, rng_);
      const TestRows k(device(1), 2 * n_tokens, 2 * head_dim, &rng_);
      const TestRows v(device(1), 2 * n_tokens, 2 * head_dim, &rng_);
      device(1).store_kv(cache.layer, k.view, v.view, cache.slots(0, 2 * n_tokens));
      const std::span<const std::uint32_t> pages(cache.pages);
      const std::vector<std::span<const std::uint32_t>> tables = {pages, pages.subspan(38)};
      std::vector<AttentionRow> rows;
      for (std::size_t r = 0; r < kBatchMax; ++r) {
        rows.push_back({.sequence = static_cast<std::uint32_t>(rng_.below(2)),
                        .position = static_cast<std::uint32_t>(rng_.below(n_tokens - 10))});
      }
      const TestRows q(device(1), kBatchMax, n_heads * head_dim, &rng_);
      const TestRows out(device(1), kBatchMax, n_heads * head_dim, nullptr);
      check(out, [&](Device& device, std::size_t first, std::size_t n) {
        device.attention(cache.layer, q.view.slice_rows(first, n),
                         {.n_heads = n_heads, .n_group = n_heads / 2},
                         {.rows = std::span(rows).subspan(first, n), .page_tables = tables}, 0.2F,
                         window, out.view.slice_rows(first, n));
      });
    }
  }
}

TEST_P(RowInvarianceTest, NormRopeAndGate) {
  const std::size_t n = 2003;
  const TestRows x(device(1), kBatchMax, n, &rng_);
  const TestRows y(device(1), kBatchMax, n, &rng_);
  const TestRows out(device(1), kBatchMax, n, nullptr);
  const auto weight = device(1).allocate(n * 4).value();
  std::fill_n(reinterpret_cast<float*>(weight->host()), n, 0.7F);
  const auto freq = device(1).allocate(64 * 4).value();
  std::fill_n(reinterpret_cast<float*>(freq->host()), 64, 0.01F);
  const TestRows table(device(1), kBatchMax, 128, nullptr);
  check(out, [&](Device& device, std::size_t first, std::size_t m) {
    const Rows to = out.view.slice_rows(first, m);
    device.rms_norm(x.view.slice_rows(first, m), *weight, 1e-6F, to);
    device.silu_mul(to, y.view.slice_rows(first, m), to);
    std::vector<std::uint32_t> positions(m);
    for (std::size_t r = 0; r < m; ++r) positions[r] = static_cast<std::uint32_t>(first + r);
    device.rope_table(positions, *freq, 1.0F, table.view.slice_rows(0, m));
    device.rope(to.slice_cols(0, 1280), 10, RopeKind::kSplitHalf, table.view.slice_rows(0, m));
    device.add(to, x.view.slice_rows(first, m), to);
    device.add_bias(to, *weight);
  });
}

}  // namespace
}  // namespace recua::compute
