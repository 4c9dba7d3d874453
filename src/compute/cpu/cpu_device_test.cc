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

// One token, as many as pieces of gate and up take, and more; types that round x alike and not.
TEST_P(CpuDeviceTest, ProductsOfTheSameRowsAreThoseOfEachAlone) {
  const auto load = [&](DataType type, std::size_t n_out) {
    const auto weights = std::make_shared<const kernels::RandomWeights>(
        kernels::random_weights(type, n_out, 512, rng_));
    return device_
        ->load_weight({.name = "w",
                       .type = type,
                       .n_in = 512,
                       .n_out = n_out,
                       .bytes = weights->bytes,
                       .owner = weights})
        .value();
  };
  const auto q = load(DataType::kQ4_K, 200);
  const auto k =
      load(DataType::kQ6_K, 1320);  // So long that a thread's first take has some of both.
  const auto v = load(DataType::kF16, 72);
  const auto gate = load(DataType::kQ4_0, 328);
  const auto up = load(DataType::kQ4_0, 328);
  const auto float_gate = load(DataType::kF16, 328);
  const auto float_up = load(DataType::kF32, 328);
  for (const std::size_t n : {0U, 1U, 7U, 100U}) {
    SCOPED_TRACE(n);
    const TestRows x = rows(n, 512);
    const std::vector<const Weight*> weights = {q.get(), k.get(), v.get()};
    std::vector<TestRows> alone, together;
    std::vector<Product> products;
    for (const Weight* w : weights) {
      device_->matmul(*w, x.view, alone.emplace_back(rows(n, w->n_out())).view);
      products.push_back({w, together.emplace_back(rows(n, w->n_out())).view});
    }
    device_->matmul_each(products, x.view);
    device_->sync();
    for (std::size_t i = 0; i < weights.size(); ++i) {
      EXPECT_EQ(together[i].values(), alone[i].values()) << i;
    }
    const std::vector<std::pair<const Weight*, const Weight*>> pairs = {
        {gate.get(), up.get()}, {gate.get(), float_up.get()}, {float_gate.get(), float_up.get()}};
    for (const auto& [first, other] : pairs) {
      const TestRows want = rows(n, 328);
      const TestRows want_up = rows(n, 328);
      device_->Device::matmul_gated({first, want.view}, {other, want_up.view}, x.view);
      const TestRows out = rows(n, 328);
      const TestRows out_up = rows(n, 328);
      device_->matmul_gated({first, out.view}, {other, out_up.view}, x.view);
      device_->sync();
      EXPECT_EQ(out.values(), want.values());
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
    const bool packs = repack && sys::supported_instruction_sets().size() > 1;
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
