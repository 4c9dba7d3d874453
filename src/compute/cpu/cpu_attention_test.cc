// Attention over pages against a plain double-precision reference, and all the ways to the same
// bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"
#include "compute/cpu/test_rows.h"
#include "kernels/attention.h"
#include "kernels/row_ops.h"
#include "quant/dequantize.h"
#include "sys/cpu_features.h"

namespace recua::compute {
namespace {

using quant::DataType;

class CpuAttentionTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  TestRows rows(std::size_t n_rows, std::size_t n_cols) {
    return {*device_, n_rows, n_cols, &rng_};
  }

  Rng rng_{7};
  std::unique_ptr<Device> device_ =
      make_cpu_device({.n_threads = 2, .instruction_set = std::string(to_string(GetParam()))})
          .value();
};
INSTANTIATE_TEST_SUITE_P(Sets, CpuAttentionTest,
                         ::testing::ValuesIn(sys::supported_instruction_sets().begin(),
                                             sys::supported_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

// What the cache gives back of a row that was stored.
void as_cached(DataType type, float* row, std::size_t n) {
  std::vector<std::byte> bytes(quant::row_bytes(type, n));
  if (type == DataType::kF32) return;
  if (type == DataType::kF16) {
    kernels::scalar::f32_to_f16(row, n, reinterpret_cast<std::uint16_t*>(bytes.data()));
  }
  if (type == DataType::kQ8_0) kernels::scalar::cache_q8_0(row, n, bytes.data());
  if (type == DataType::kQ4_0) kernels::scalar::cache_q4_0(row, n, bytes.data());
  quant::dequantize_row(type, bytes.data(), n, row);
}

struct AttentionCase {
  DataType type;
  std::size_t n_heads, n_kv_heads, head_dim, page_tokens, n_seen;
  std::uint32_t window;
};

TEST_P(CpuAttentionTest, OverPagesMatchesTheReference) {
  const std::vector<AttentionCase> cases = {
      {DataType::kF32, 8, 4, 8, 16, 40, 0},      {DataType::kF16, 8, 2, 64, 32, 300, 0},
      {DataType::kF16, 6, 6, 20, 7, 65, 0},      {DataType::kF32, 3, 1, 128, 64, 700, 0},
      {DataType::kF16, 14, 2, 64, 16, 257, 0},   {DataType::kF16, 4, 2, 16, 16, 600, 100},
      {DataType::kF32, 5, 1, 24, 256, 513, 300}, {DataType::kQ8_0, 6, 2, 64, 32, 520, 0},
      {DataType::kQ8_0, 4, 4, 32, 20, 300, 70},  {DataType::kQ4_0, 9, 3, 64, 32, 530, 0},
      {DataType::kQ4_0, 2, 1, 96, 48, 290, 20}};
  for (const AttentionCase& c : cases) {
    SCOPED_TRACE(fmt::format("{} heads {}/{} dim {} page {} seen {} window {}",
                             quant::traits(c.type).name, c.n_heads, c.n_kv_heads, c.head_dim,
                             c.page_tokens, c.n_seen, c.window));
    TestCache cache(*device_, c.type, c.n_kv_heads, c.head_dim, c.page_tokens, c.n_seen, rng_);
    const TestRows k = rows(c.n_seen, c.n_kv_heads * c.head_dim);
    const TestRows v = rows(c.n_seen, c.n_kv_heads * c.head_dim);
    device_->store_kv(cache.layer, k.view, v.view, cache.slots(0, c.n_seen));
    for (const TestRows* rows : {&k, &v}) {
      for (std::size_t r = 0; r < c.n_seen; ++r)
        as_cached(c.type, rows->view.row(r), k.view.n_cols);
    }
    const std::vector<AttentionRow> which = {
        {.sequence = 0, .position = static_cast<std::uint32_t>(c.n_seen - 1)},
        {.sequence = 0, .position = 0},
        {.sequence = 0, .position = static_cast<std::uint32_t>(c.n_seen / 2)}};
    const std::vector<std::span<const std::uint32_t>> tables = {cache.pages};
    const TestRows q = rows(which.size(), c.n_heads * c.head_dim);
    const TestRows out = rows(which.size(), c.n_heads * c.head_dim);
    const float scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    const HeadGroups heads = {.n_heads = c.n_heads, .n_group = c.n_heads / c.n_kv_heads};
    device_->attention(cache.layer, q.view, heads, {.rows = which, .page_tables = tables}, scale,
                       c.window, out.view);
    for (std::size_t t = 0; t < which.size(); ++t) {
      const std::size_t end = which[t].position + 1;
      const std::size_t first = c.window > 0 && end > c.window ? end - c.window : 0;
      for (std::size_t h = 0; h < c.n_heads; ++h) {
        const std::size_t kv = h / (c.n_heads / c.n_kv_heads) * c.head_dim;
        std::vector<double> p(end - first);
        double max = -1e300;
        for (std::size_t j = first; j < end; ++j) {
          double dot = 0.0;
          for (std::size_t d = 0; d < c.head_dim; ++d) {
            dot += static_cast<double>(q.at(t, h * c.head_dim + d)) * k.at(j, kv + d);
          }
          p[j - first] = dot * scale;
          max = std::max(max, p[j - first]);
        }
        double sum = 0.0;
        for (double& score : p) sum += score = std::exp(score - max);
        for (std::size_t d = 0; d < c.head_dim; ++d) {
          double want = 0.0;
          double absolute = 0.0;
          for (std::size_t j = first; j < end; ++j) {
            want += p[j - first] / sum * v.at(j, kv + d);
            absolute += p[j - first] / sum * std::fabs(static_cast<double>(v.at(j, kv + d)));
          }
          // Scores are below 20 and off by some 2^-19, values are summed n_seen deep.
          ASSERT_NEAR(out.at(t, h * c.head_dim + d), want, absolute * 0x1.0p-14)
              << "row " << t << " head " << h << " d " << d;
        }
      }
    }
  }
}

// A prompt in one step takes the way over widened tokens; its rows one by one, and in a cache whose
// pages end within a group of keys, the way straight from the pages. All give the same bits.
TEST_P(CpuAttentionTest, OfAPromptIsThatOfItsRowsOneByOne) {
  const std::size_t n_seen = 310;
  const std::size_t n_heads = 6;
  const std::size_t head_dim = 32;
  for (const DataType type : {DataType::kF16, DataType::kF32, DataType::kQ8_0, DataType::kQ4_0}) {
    for (const std::uint32_t window : {0U, 50U}) {
      SCOPED_TRACE(fmt::format("{} window {}", quant::traits(type).name, window));
      const TestRows k = rows(n_seen, 2 * head_dim);
      const TestRows v = rows(n_seen, 2 * head_dim);
      const TestRows q = rows(n_seen, n_heads * head_dim);
      std::vector<AttentionRow> which;
      for (std::uint32_t r = 0; r < n_seen; ++r) which.push_back({.sequence = 0, .position = r});
      std::vector<std::vector<float>> results;
      for (const std::size_t page_tokens : {32U, 19U}) {
        TestCache cache(*device_, type, 2, head_dim, page_tokens, n_seen, rng_);
        device_->store_kv(cache.layer, k.view, v.view, cache.slots(0, n_seen));
        const std::vector<std::span<const std::uint32_t>> tables = {cache.pages};
        for (const std::size_t n_at_once : {n_seen, std::size_t{1}}) {
          const TestRows out = rows(n_seen, n_heads * head_dim);
          for (std::size_t r = 0; r < n_seen; r += n_at_once) {
            device_->attention(
                cache.layer, q.view.slice_rows(r, n_at_once), {.n_heads = n_heads, .n_group = 3},
                {.rows = std::span(which).subspan(r, n_at_once), .page_tables = tables}, 0.2F,
                window, out.view.slice_rows(r, n_at_once));
          }
          results.push_back(out.values());
        }
      }
      for (const auto& result : results) {
        ASSERT_EQ(std::memcmp(result.data(), results[0].data(), result.size() * 4), 0);
      }
    }
  }
}

// What a rank of a tensor split has: some of the KV heads, and not all query heads of the first and
// the last of them. Each head's result has the same bits as beside all the others.
TEST_P(CpuAttentionTest, OfSomeHeadsIsThatOfTheSameHeadsAmongAll) {
  const std::size_t n_group = 5;
  const std::size_t n_kv_heads = 3;
  const std::size_t head_dim = 24;
  const std::size_t n_seen = 300;
  for (const DataType type : {DataType::kF16, DataType::kF32}) {
    TestCache all(*device_, type, n_kv_heads, head_dim, 16, n_seen, rng_);
    const TestRows k = rows(n_seen, n_kv_heads * head_dim);
    const TestRows v = rows(n_seen, n_kv_heads * head_dim);
    device_->store_kv(all.layer, k.view, v.view, all.slots(0, n_seen));
    const std::vector<AttentionRow> which = {{.sequence = 0, .position = n_seen - 1},
                                             {.sequence = 0, .position = 7}};
    const TestRows q = rows(which.size(), n_group * n_kv_heads * head_dim);
    const TestRows want = rows(which.size(), q.view.n_cols);
    const std::vector<std::span<const std::uint32_t>> tables = {all.pages};
    device_->attention(all.layer, q.view, {.n_heads = n_group * n_kv_heads, .n_group = n_group},
                       {.rows = which, .page_tables = tables}, 0.2F, 0, want.view);
    for (std::size_t begin = 0; begin < n_group * n_kv_heads; ++begin) {
      for (std::size_t end = begin + 1; end <= n_group * n_kv_heads; ++end) {
        const std::size_t kv_begin = begin / n_group;
        const std::size_t n_kv = (end - 1) / n_group + 1 - kv_begin;
        TestCache some(*device_, type, n_kv, head_dim, 16, n_seen, rng_);
        device_->store_kv(some.layer, k.view.slice_cols(kv_begin * head_dim, n_kv * head_dim),
                          v.view.slice_cols(kv_begin * head_dim, n_kv * head_dim),
                          some.slots(0, n_seen));
        const std::size_t n_cols = (end - begin) * head_dim;
        const TestRows got = rows(which.size(), n_cols);
        const std::vector<std::span<const std::uint32_t>> some_tables = {some.pages};
        device_->attention(
            some.layer, q.view.slice_cols(begin * head_dim, n_cols),
            {.n_heads = end - begin, .n_group = n_group, .n_before = begin % n_group},
            {.rows = which, .page_tables = some_tables}, 0.2F, 0, got.view);
        for (std::size_t t = 0; t < which.size(); ++t) {
          ASSERT_EQ(std::memcmp(got.view.row(t), want.view.row(t) + begin * head_dim, n_cols * 4),
                    0)
              << "heads " << begin << " to " << end << " row " << t;
        }
      }
    }
  }
}

// More units (47 blocks of 4 heads) than fit a wave of two threads (some 160), so that what a row
// has so far is merged with what comes later: the same bits as with one thread, whose waves are cut
// elsewhere.
TEST_P(CpuAttentionTest, WavesChangeNothing) {
  const std::size_t n_seen = 12000;
  const std::size_t n_heads = 4;
  const std::size_t head_dim = 64;
  const std::size_t n_rows = 24;
  const auto other =
      make_cpu_device({.n_threads = 1, .instruction_set = std::string(to_string(GetParam()))})
          .value();
  TestCache cache(*device_, DataType::kF16, 4, head_dim, 32, n_seen, rng_);
  const TestRows k = rows(n_seen, 4 * head_dim);
  const TestRows v = rows(n_seen, 4 * head_dim);
  device_->store_kv(cache.layer, k.view, v.view, cache.slots(0, n_seen));
  std::vector<AttentionRow> which;
  for (std::size_t r = 0; r < n_rows; ++r) {
    which.push_back({.sequence = 0, .position = static_cast<std::uint32_t>(n_seen - n_rows + r)});
  }
  const std::vector<std::span<const std::uint32_t>> tables = {cache.pages};
  const TestRows q = rows(n_rows, n_heads * head_dim);
  const HeadGroups heads = {.n_heads = n_heads, .n_group = 1};
  const TestRows want = rows(n_rows, n_heads * head_dim);
  device_->attention(cache.layer, q.view, heads, {.rows = which, .page_tables = tables}, 0.1F, 0,
                     want.view);
  const TestRows got = rows(n_rows, n_heads * head_dim);
  other->attention(cache.layer, q.view, heads, {.rows = which, .page_tables = tables}, 0.1F, 0,
                   got.view);
  EXPECT_EQ(got.values(), want.values());
  for (std::size_t r = 0; r < n_rows; ++r) {
    other->attention(cache.layer, q.view.slice_rows(r, 1), heads,
                     {.rows = std::span(which).subspan(r, 1), .page_tables = tables}, 0.1F, 0,
                     got.view.slice_rows(r, 1));
  }
  EXPECT_EQ(got.values(), want.values());
}

}  // namespace
}  // namespace recua::compute
