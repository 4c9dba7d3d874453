// Every operator of the CPU device against a plain double-precision reference, on every instruction
// set that this CPU has.
#include "compute/cpu/cpu_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "base/random.h"
#include "base/scratch_folder.h"
#include "compute/cpu/test_rows.h"
#include "kernels/random_weights.h"
#include "quant/dequantize.h"
#include "quant/half.h"
#include "sys/aligned_buffer.h"
#include "sys/cpu_features.h"

namespace recua::compute {
namespace {

using quant::DataType;

class CpuDeviceTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void SetUp() override {
    if (!sys::supported(GetParam())) GTEST_SKIP() << "this CPU lacks " << to_string(GetParam());
    device_ =
        make_cpu_device({.n_threads = 2, .instruction_set = std::string(to_string(GetParam()))})
            .value();
  }
  TestRows rows(std::size_t n_rows, std::size_t n_cols) {
    return {*device_, n_rows, n_cols, &rng_};
  }
  std::unique_ptr<Buffer> vector(std::size_t n) {
    const std::vector<float> values = kernels::random_floats(n, rng_);
    return device_
        ->load_vector({.name = "v",
                       .type = DataType::kF32,
                       .n_in = n,
                       .bytes = std::as_bytes(std::span(values)),
                       .owner = nullptr})
        .value();
  }

  Rng rng_{7};
  std::unique_ptr<Device> device_;
};

std::string set_name(const ::testing::TestParamInfo<sys::InstructionSet>& info) {
  return std::string(to_string(info.param));
}
INSTANTIATE_TEST_SUITE_P(Sets, CpuDeviceTest,
                         ::testing::ValuesIn(sys::all_instruction_sets().begin(),
                                             sys::all_instruction_sets().end()),
                         set_name);

// Activations rounded to 8 bits per block are off by at most max|x| / 254 each, so an output by at
// most the sum of |w| times that. Sums in f32 add n * 2^-23 of the absolute products.
TEST_P(CpuDeviceTest, MatmulOfEveryTypeIsWithinRoundingOfTheReference) {
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    const std::size_t n_in = block == 1 ? 173 : 3 * block;
    const std::size_t n_out = 37;
    const kernels::RandomWeights weights = kernels::random_weights(type, n_out, n_in, rng_);
    const auto w = device_
                       ->load_weight({.name = "w",
                                      .type = type,
                                      .n_in = n_in,
                                      .n_out = n_out,
                                      .bytes = weights.bytes,
                                      .owner = nullptr})
                       .value();
    const TestRows x = rows(5, n_in);
    const TestRows out = rows(5, n_out);
    device_->matmul(*w, x.view, out.view);
    device_->sync();
    std::vector<float> row(n_in);
    for (std::size_t o = 0; o < n_out; ++o) {
      quant::dequantize_row(type, weights.bytes.data() + o * quant::row_bytes(type, n_in), n_in,
                            row.data());
      for (std::size_t t = 0; t < 5; ++t) {
        double want = 0.0;
        double bound = 0.0;
        for (std::size_t b = 0; b < n_in; b += block) {
          double x_max = 0.0;
          for (std::size_t i = b; i < b + block; ++i) {
            x_max = std::max(x_max, std::fabs(static_cast<double>(x.at(t, i))));
          }
          for (std::size_t i = b; i < b + block; ++i) {
            want += static_cast<double>(row[i]) * x.at(t, i);
            if (block > 1) bound += std::fabs(static_cast<double>(row[i])) * x_max / 254;
            bound += static_cast<double>(n_in) * 0x1.0p-23 * weights.part_max * x_max;
          }
        }
        ASSERT_NEAR(out.at(t, o), want, bound)
            << quant::traits(type).name << " token " << t << " output " << o;
      }
    }
  }
}

TEST_P(CpuDeviceTest, EmbedGivesTheStoredRows) {
  for (const DataType type : quant::kAllDataTypes) {
    const kernels::RandomWeights weights = kernels::random_weights(type, 9, 512, rng_);
    const auto w = device_
                       ->load_weight({.name = "w",
                                      .type = type,
                                      .n_in = 512,
                                      .n_out = 9,
                                      .bytes = weights.bytes,
                                      .owner = nullptr})
                       .value();
    // The rows 20 to 28 of a table; other ranks have the others.
    const std::vector<std::int32_t> ids = {28, 20, 28, 23, 19, 29, 0, 0x7fffffff};
    const TestRows out = rows(ids.size(), 512);
    device_->embed(*w, 20, ids, out.view);
    std::vector<float> want(512);
    for (std::size_t t = 0; t < ids.size(); ++t) {
      std::fill(want.begin(), want.end(), 0.0F);
      if (t < 4) {
        const std::size_t at = static_cast<std::size_t>(ids[t] - 20) * quant::row_bytes(type, 512);
        quant::dequantize_row(type, weights.bytes.data() + at, 512, want.data());
      }
      ASSERT_EQ(std::memcmp(want.data(), out.view.row(t), 512 * 4), 0);
    }
  }
}

TEST_P(CpuDeviceTest, RowOperatorsMatchTheReference) {
  for (const std::size_t n : {1U, 7U, 64U, 173U}) {
    const auto weight = vector(n);
    const auto* wv = reinterpret_cast<const float*>(weight->host());
    const TestRows a = rows(3, n);
    const TestRows b = rows(3, n);
    const TestRows out = rows(3, n);

    device_->rms_norm(a.view, *weight, 1e-5F, out.view);
    for (std::size_t t = 0; t < 3; ++t) {
      double sum_sq = 0.0;
      for (std::size_t i = 0; i < n; ++i) sum_sq += static_cast<double>(a.at(t, i)) * a.at(t, i);
      const double scale = 1.0 / std::sqrt(sum_sq / static_cast<double>(n) + 1e-5);
      for (std::size_t i = 0; i < n; ++i) {
        const double want = a.at(t, i) * scale * wv[i];
        ASSERT_NEAR(out.at(t, i), want, std::fabs(want) * 0x1.0p-21) << n;
      }
    }
    device_->silu_mul(a.view, b.view, out.view);
    for (std::size_t t = 0; t < 3; ++t) {
      for (std::size_t i = 0; i < n; ++i) {
        const double x = a.at(t, i);
        const double want = x / (1.0 + std::exp(-x)) * b.at(t, i);
        ASSERT_NEAR(out.at(t, i), want, std::fabs(want) * 0x1.0p-20) << x;
      }
    }
    device_->add(a.view, b.view, out.view);
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(out.at(2, i), a.at(2, i) + b.at(2, i));
    const float before = a.at(1, n - 1);
    device_->add_bias(a.view, *weight);
    ASSERT_EQ(a.at(1, n - 1), before + wv[n - 1]);
    const std::vector<std::uint32_t> which = {2, 0, 2};
    device_->gather_rows(b.view, which, out.view);
    ASSERT_EQ(out.at(0, n / 2), b.at(2, n / 2));
    ASSERT_EQ(out.at(1, n / 2), b.at(0, n / 2));
  }
}

TEST_P(CpuDeviceTest, RopeRotatesPairsByPositionTimesFrequency) {
  const std::vector<std::uint32_t> positions = {0, 5, 131071};
  for (const RopeKind kind : {RopeKind::kInterleaved, RopeKind::kSplitHalf}) {
    for (const std::size_t n_rot : {2U, 6U, 16U, 20U}) {
      const std::size_t head_dim = 20;
      const auto inv_freq = vector(n_rot / 2);
      const auto* freq = reinterpret_cast<const float*>(inv_freq->host());
      const TestRows table = rows(3, n_rot);
      device_->rope_table(positions, *inv_freq, 1.25F, table.view);
      const TestRows x = rows(3, 2 * head_dim);
      const std::vector<float> old = x.values();
      device_->rope(x.view, 2, kind, table.view);
      for (std::size_t t = 0; t < 3; ++t) {
        for (std::size_t h = 0; h < 2; ++h) {
          const std::size_t base = h * head_dim;
          for (std::size_t j = 0; j < n_rot / 2; ++j) {
            const std::size_t i0 = kind == RopeKind::kInterleaved ? 2 * j : j;
            const std::size_t i1 = kind == RopeKind::kInterleaved ? 2 * j + 1 : j + n_rot / 2;
            const double angle = static_cast<double>(positions[t]) * freq[j];
            const double a = old[t * 2 * head_dim + base + i0];
            const double b = old[t * 2 * head_dim + base + i1];
            const double c = 1.25 * std::cos(angle);
            const double s = 1.25 * std::sin(angle);
            // Three roundings of numbers below 2.5 (|a| + |b|).
            const double bound = 0x1.0p-21 * (std::fabs(a) + std::fabs(b));
            ASSERT_NEAR(x.at(t, base + i0), a * c - b * s, bound);
            ASSERT_NEAR(x.at(t, base + i1), b * c + a * s, bound);
          }
          for (std::size_t i = n_rot; i < head_dim; ++i) {
            ASSERT_EQ(x.at(t, base + i), old[t * 2 * head_dim + base + i]);
          }
        }
      }
    }
  }
}

struct AttentionCase {
  DataType type;
  std::size_t n_heads, n_kv_heads, head_dim, page_tokens, n_seen;
  std::uint32_t window;
};

TEST_P(CpuDeviceTest, AttentionOverPagesMatchesTheReference) {
  const std::vector<AttentionCase> cases = {
      {DataType::kF32, 8, 4, 8, 16, 40, 0},     {DataType::kF16, 8, 2, 64, 32, 300, 0},
      {DataType::kF16, 6, 6, 20, 7, 65, 0},     {DataType::kF32, 3, 1, 128, 64, 700, 0},
      {DataType::kF16, 14, 2, 64, 16, 257, 0},  {DataType::kF16, 4, 2, 16, 16, 600, 100},
      {DataType::kF32, 5, 1, 24, 256, 513, 300}};
  for (const AttentionCase& c : cases) {
    SCOPED_TRACE(fmt::format("{} heads {}/{} dim {} page {} seen {} window {}",
                             quant::traits(c.type).name, c.n_heads, c.n_kv_heads, c.head_dim,
                             c.page_tokens, c.n_seen, c.window));
    TestCache cache(*device_, c.type, c.n_kv_heads, c.head_dim, c.page_tokens, c.n_seen, rng_);
    const TestRows k = rows(c.n_seen, c.n_kv_heads * c.head_dim);
    const TestRows v = rows(c.n_seen, c.n_kv_heads * c.head_dim);
    device_->store_kv(cache.layer, k.view, v.view, cache.slots(0, c.n_seen));
    const auto stored = [&](float x) {
      return c.type == DataType::kF32 ? x : quant::f16_to_f32(quant::f32_to_f16(x));
    };
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
            dot += static_cast<double>(q.at(t, h * c.head_dim + d)) * stored(k.at(j, kv + d));
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
            want += p[j - first] / sum * stored(v.at(j, kv + d));
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

// What a rank of a tensor split has: some of the KV heads, and not all query heads of the first and
// the last of them. Each head's result has the same bits as beside all the others.
TEST_P(CpuDeviceTest, AttentionOfSomeHeadsIsThatOfTheSameHeadsAmongAll) {
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

TEST_P(CpuDeviceTest, RoutesTheLargestExpertsInAscendingOrder) {
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

TEST_P(CpuDeviceTest, ExpertsEqualTheirMatricesOneByOne) {
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

// What a device keeps of a weight: its packed copy, or the bytes where they are.
TEST(CpuDevice, KeepsAMappedWeightOnceWhetherItIsRepackedOrNot) {
  Rng rng(9);
  const ScratchFolder folder;
  const DataType type = DataType::kQ4_0;
  const std::size_t n_in = 1024;
  const std::size_t n_out = 4099;  // Larger than what is packed at a time.
  const kernels::RandomWeights weights = kernels::random_weights(type, n_out, n_in, rng);
  const std::filesystem::path path = folder / "weights";
  ASSERT_TRUE(write_file_atomically(path, weights.bytes).ok());
  const std::vector<float> values = kernels::random_floats(2 * n_in, rng);
  std::vector<std::vector<float>> results;
  for (const bool repack : {true, false}) {
    const auto device = make_cpu_device({.n_threads = 2, .repack = repack}).value();
    auto file = std::make_shared<const MappedFile>(MappedFile::open(path).value());
    const std::weak_ptr<const MappedFile> watch = file;
    const auto w = device
                       ->load_weight({.name = "w",
                                      .type = type,
                                      .n_in = n_in,
                                      .n_out = n_out,
                                      .bytes = file->bytes(),
                                      .owner = file,
                                      .in_mapped_file = true})
                       .value();
    ASSERT_TRUE(std::ranges::equal(file->bytes(), weights.bytes)) << "a dropped page changed";
    file.reset();
    const bool packs = repack && sys::supported(sys::InstructionSet::kAvx2);
    EXPECT_EQ(watch.expired(), packs);
    const TestRows x(*device, 2, n_in, nullptr);
    for (std::size_t i = 0; i < values.size(); ++i) x.at(i / n_in, i % n_in) = values[i];
    const TestRows out(*device, 2, n_out, nullptr);
    device->matmul(*w, x.view, out.view);
    results.push_back(out.values());
  }
  // The same activations and exact sums within blocks: what differs is the rounding of f32 sums.
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    const double absolute = weights.part_max * 5 * static_cast<double>(n_in);
    ASSERT_NEAR(results[0][i], results[1][i], absolute * static_cast<double>(n_in) * 0x1.0p-23);
  }
}

TEST(CpuDevice, RefusesTensorsWhoseBytesDoNotFitTheirShape) {
  const auto device = make_cpu_device({.n_threads = 1}).value();
  const std::vector<std::byte> bytes(144);
  const auto message = [&](TensorBytes tensor) {
    const auto result = device->load_weight(std::move(tensor));
    return result.ok() ? "accepted" : result.error().message;
  };
  EXPECT_EQ(
      message({.name = "a", .type = DataType::kQ4_K, .n_in = 256, .bytes = bytes, .owner = {}}),
      "accepted");
  EXPECT_EQ(
      message({.name = "a", .type = DataType::kQ4_K, .n_in = 512, .bytes = bytes, .owner = {}}),
      "tensor \"a\", type Q4_K, shape [1, 1, 512]: has 144 bytes, the shape needs 288");
  EXPECT_EQ(
      message({.name = "a", .type = DataType::kQ4_K, .n_in = 100, .bytes = bytes, .owner = {}}),
      "tensor \"a\", type Q4_K, shape [1, 1, 100]: a row of 100 elements is no multiple of the "
      "type's block of 256");
  EXPECT_EQ(message({.name = "a",
                     .type = DataType::kF32,
                     .n_in = std::size_t{1} << 40U,
                     .n_out = std::size_t{1} << 40U,
                     .bytes = bytes,
                     .owner = {}}),
            "tensor \"a\", type F32, shape [1, 1099511627776, 1099511627776]: its size overflows");
  EXPECT_EQ(message({.name = "a", .type = DataType::kF32, .n_in = 0, .bytes = {}, .owner = {}}),
            "tensor \"a\", type F32, shape [1, 1, 0]: a dimension is 0");
}

TEST(CpuDevice, ComputesInMemoryThatIsSomebodyElsesAndKeepsItAlive) {
  const auto device = make_cpu_device({.n_threads = 1}).value();
  auto memory = std::make_shared<sys::AlignedBuffer>(sys::AlignedBuffer::allocate(256).value());
  auto* floats = reinterpret_cast<float*>(memory->data());
  for (int i = 0; i < 64; ++i) floats[i] = static_cast<float>(i);
  const std::weak_ptr<sys::AlignedBuffer> watch = memory;
  auto buffer = device->import(memory->bytes(), memory).value();
  memory.reset();
  ASSERT_FALSE(watch.expired());
  EXPECT_EQ(buffer->host(), reinterpret_cast<std::byte*>(floats));
  EXPECT_EQ(buffer->bytes(), 256U);
  const Rows rows = dense_rows(*buffer, 2, 32);
  device->add(rows, rows, rows);
  device->sync();
  EXPECT_EQ(floats[0], 0.0F);
  EXPECT_EQ(floats[63], 126.0F);
  buffer.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(CpuDevice, RefusesToImportMemoryThatIsNotAligned) {
  const auto device = make_cpu_device({.n_threads = 1}).value();
  const auto memory = sys::AlignedBuffer::allocate(256).value();
  const auto result = device->import(memory.bytes().subspan(32), nullptr);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(result.error().message,
            "memory to import begins 32 bytes after a multiple of 64: it must begin on one");
}

TEST(CpuDevice, NamesItsInstructionSetAndThreads) {
  EXPECT_EQ(make_cpu_device({.n_threads = 1, .instruction_set = "scalar"}).value()->description(),
            "cpu scalar, 1 thread");
  EXPECT_FALSE(make_cpu_device({.n_threads = 100000}).ok());
  EXPECT_FALSE(make_cpu_device({.n_threads = 1, .instruction_set = "vax"}).ok());
}

}  // namespace
}  // namespace recua::compute
