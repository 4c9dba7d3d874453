// Every table that this CPU supports against the scalar one, for all lengths, tails and alignments.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "kernels/kernel_table.h"
#include "kernels/random_weights.h"
#include "kernels/test_products.h"
#include "quant/dequantize.h"
#include "quant/half.h"

namespace recua::kernels {
namespace {

using quant::DataType;

class KernelsTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void SetUp() override {
    if (!sys::supported(GetParam())) GTEST_SKIP() << "this CPU lacks " << to_string(GetParam());
  }
  const KernelTable& table_ = kernel_table_or_scalar(GetParam());
  const KernelTable& scalar_ = kernel_table(sys::InstructionSet::kScalar);
  Rng rng_{11};
};
INSTANTIATE_TEST_SUITE_P(Sets, KernelsTest,
                         ::testing::ValuesIn(sys::all_instruction_sets().begin(),
                                             sys::all_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

TEST_P(KernelsTest, QuantizedActivationsAreTheSameToTheBit) {
  for (const std::size_t n : {256U, 512U, 1024U}) {
    for (const float scale : {1.0F, 1e-20F, 1e20F, 1e-38F, 0.0F}) {
      std::vector<float> x = random_floats(n + 1, rng_);
      for (float& v : x) v *= scale;
      x[7] = 127.5F * scale;  // Ties occur.
      const float* from = x.data() + 1;
      for (const ActivationKind kind :
           {ActivationKind::kQ8x32, ActivationKind::kQ8x256, ActivationKind::kQ16x32,
            ActivationKind::kBlocks32, ActivationKind::kBlocks256}) {
        if (table_.quantize(kind) == nullptr) continue;
        std::vector<std::byte> a(activation_row_bytes(kind, n));
        std::vector<std::byte> b(a.size());
        quantize(table_, kind, from, n, a.data());
        quantize(scalar_, kind, from, n, b.data());
        ASSERT_EQ(a, b) << "kind " << static_cast<int>(kind) << " n " << n << " scale " << scale;
      }
    }
  }
}

TEST_P(KernelsTest, QuantizedActivationsAreTheNearestMultipleAndNeverMinus128) {
  const std::size_t n = 512;
  const std::vector<float> x = random_floats(n, rng_);
  for (const ActivationKind kind : {ActivationKind::kQ8x32, ActivationKind::kQ8x256}) {
    const Activations rows(table_, kind, 1, n, x);
    const std::size_t block = kind == ActivationKind::kQ8x32 ? 32 : 256;
    for (std::size_t i = 0; i < n; ++i) {
      const double d = q8_scales(rows.rows[0], n)[i / block];
      ASSERT_GE(q8_values(rows.rows[0])[i], -127);
      ASSERT_NEAR(rows.value(kind, 0, i, n), x[i], d * 0.5001);
    }
    for (std::size_t b = 0; b < n / block; ++b) {
      int sum = 0;
      for (std::size_t i = 0; i < 16; ++i) sum += q8_values(rows.rows[0])[b * block + 16 + i];
      int first_sum = 0;
      for (std::size_t i = 0; i < 16; ++i) first_sum += q8_values(rows.rows[0])[b * block + i];
      if (kind == ActivationKind::kQ8x256) {
        ASSERT_EQ(q8x256_sums(rows.rows[0], n)[16 * b + sum_index(1)], sum);
        ASSERT_EQ(q8x256_sums32(rows.rows[0], n)[8 * b], first_sum + sum);
        const std::int16_t* const offsets = q8x256_offsets(rows.rows[0], n) + 32 * b + 2;
        ASSERT_EQ(offsets[0] + offsets[1], -32 * sum);
        const std::int8_t* const q = q8_values(rows.rows[0]) + b * block + 16;
        ASSERT_EQ(offsets[0], -32 * (q[0] + q[1] + q[4] + q[5] + q[8] + q[9] + q[12] + q[13]));
      } else {
        const std::int8_t* const q = q8_values(rows.rows[0]) + b * block;
        int pairs = 0;
        for (std::size_t i = 0; i < 32; i += 4) pairs += q[i] + q[i + 1];
        ASSERT_EQ(q8x32_fours(rows.rows[0], n)[2 * b], -4 * pairs);
        ASSERT_EQ(q8x32_fours(rows.rows[0], n)[2 * b + 1], -4 * (first_sum + sum - pairs));
      }
    }
  }
}

TEST_P(KernelsTest, BlocksOfActivationsCarryTheSumsOfTheirNumbers) {
  const std::size_t n = 512;
  const std::vector<float> x = random_floats(n, rng_);
  if (table_.quantize(ActivationKind::kBlocks32) == nullptr) GTEST_SKIP() << "no kernel takes them";
  const Activations small(table_, ActivationKind::kBlocks32, 1, n, x);
  const Activations large(table_, ActivationKind::kBlocks256, 1, n, x);
  for (std::size_t b = 0; b < n / 32; ++b) {
    const ActivationBlock32& block = activation_blocks32(small.rows[0])[b];
    int sum = 0;
    for (std::size_t i = 0; i < 32; ++i) {
      sum += block.q[i];
      ASSERT_GE(block.q[i], -127);
      ASSERT_NEAR(block.q[i] * block.d, x[32 * b + i], block.d * 0.5001);
    }
    ASSERT_EQ(block.offset, -128 * sum) << "block " << b;
  }
  for (std::size_t g = 0; g < n / 16; ++g) {
    const ActivationBlock256& block = activation_blocks256(large.rows[0])[g / 16];
    const std::size_t group = g % 16;
    int sum = 0;
    for (std::size_t i = 0; i < 16; ++i) {
      const std::int8_t q = block.q[16 * group + i];
      sum += q;
      ASSERT_GE(q, -127);
      ASSERT_NEAR(q * block.d, x[16 * g + i], block.d * 0.5001);
    }
    ASSERT_EQ(block.offsets[group], -32 * sum) << "group " << g;
    if (group % 2 == 1) {
      ASSERT_EQ(-32 * block.sums32[group / 2], block.offsets[group - 1] + block.offsets[group]);
    }
  }
}

TEST_P(KernelsTest, QuantizesInfinityAndNanToSomethingInRange) {
  std::vector<float> x(256, 1.0F);
  x[3] = INFINITY;
  x[100] = NAN;
  for (const ActivationKind kind :
       {ActivationKind::kQ8x256, ActivationKind::kBlocks32, ActivationKind::kBlocks256}) {
    if (table_.quantize(kind) == nullptr) continue;
    std::vector<std::byte> a(activation_row_bytes(kind, 256));
    std::vector<std::byte> b(a.size());
    quantize(table_, kind, x.data(), 256, a.data());
    quantize(scalar_, kind, x.data(), 256, b.data());
    EXPECT_EQ(a, b) << "kind " << static_cast<int>(kind);
    const float d = kind == ActivationKind::kQ8x256     ? q8_scales(a.data(), 256)[0]
                    : kind == ActivationKind::kBlocks32 ? activation_blocks32(a.data())->d
                                                        : activation_blocks256(a.data())->d;
    EXPECT_FALSE(std::isfinite(d)) << "kind " << static_cast<int>(kind);
  }
}

// The reference is computed in double from the dequantized weights and the very activations that
// the kernel saw, so only the kernel's own rounding is left: n * 2^-23 of the absolute products.
TEST_P(KernelsTest, MatmulMatchesDoubleForEveryTypeLengthAndTileAtAnyAlignment) {
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    const ActivationKind kind = activation_kind(type);
    std::vector<std::size_t> lengths;
    if (block == 1) {
      for (std::size_t n = 1; n <= 70; ++n) lengths.push_back(n);
    } else {
      for (std::size_t n = 1; n <= 9; ++n) lengths.push_back(n * block);
    }
    for (const std::size_t n_in : lengths) {
      const std::size_t n_rows = 1 + rng_.below(7);
      const std::size_t n_tokens = 1 + rng_.below(9);
      const std::size_t stride = quant::row_bytes(type, n_in);
      const RandomWeights weights = random_weights(type, n_rows, n_in, rng_);
      const std::size_t shift = 1 + rng_.below(31);  // Misaligned on purpose.
      std::vector<std::byte> shifted(weights.bytes.size() + shift);
      std::copy(weights.bytes.begin(), weights.bytes.end(),
                shifted.begin() + static_cast<std::ptrdiff_t>(shift));
      const std::vector<float> values = random_floats(n_tokens * n_in, rng_);
      const Activations x(table_, kind, n_tokens, n_in, values);
      const std::vector<float> out =
          multiply(table_.matmul(type), shifted.data() + shift, stride, n_rows, n_in, x.rows);
      expect_products(out, type, weights, n_rows, n_in, kind, x);
    }
  }
}

// With scales that are powers of two and one block, the result is an exact integer: the largest
// weights and activations of either sign show any overflow of 16 or 32 bits.
TEST_P(KernelsTest, MatmulIsExactAtTheExtremesOfEveryQuantizedType) {
  const std::uint16_t one = quant::f32_to_f16(1.0F);
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    if (block == 1) continue;
    const ActivationKind kind = activation_kind(type);
    for (const int fill : {0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0}) {
      RandomWeights weights = random_weights(type, 1, block, rng_);
      std::fill(weights.bytes.begin(), weights.bytes.end(), static_cast<std::byte>(fill));
      const auto put = [&](std::size_t at) { std::memcpy(weights.bytes.data() + at, &one, 2); };
      switch (type) {
        case DataType::kQ2_K:
          put(80);
          put(82);
          break;
        case DataType::kQ3_K:
          put(108);
          break;
        case DataType::kQ6_K:
          put(208);
          break;
        case DataType::kQ4_1:
        case DataType::kQ5_1:
        case DataType::kQ4_K:
        case DataType::kQ5_K:
          put(2);
          put(0);
          break;
        case DataType::kMXFP4:
          weights.bytes[0] = std::byte{128};  // 2^0.
          break;
        default:
          put(0);
      }
      for (const float sign : {1.0F, -1.0F}) {
        const std::vector<float> values(block, 127.0F * sign);  // d = 1, q = +-127.
        const Activations x(table_, kind, 1, block, values);
        const std::vector<float> out = multiply(table_.matmul(type), weights.bytes.data(),
                                                weights.bytes.size(), 1, block, x.rows);
        std::vector<float> row(block);
        quant::dequantize_row(type, weights.bytes.data(), block, row.data());
        double want = 0.0;
        for (const float w : row) want += static_cast<double>(w) * values[0];
        // Sums up to 2.6e8 are rounded when they become f32; an overflow is off by 2^16 or more.
        ASSERT_NEAR(out[0], want, 64.0)
            << quant::traits(type).name << " fill " << fill << " sign " << sign;
      }
    }
  }
}

TEST_P(KernelsTest, AnOutputDoesNotDependOnTheTileItIsIn) {
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    const std::size_t n_in = block == 1 ? 173 : 3 * block;
    const std::size_t n_rows = 11;
    const std::size_t n_tokens = 9;
    const std::size_t stride = quant::row_bytes(type, n_in);
    const RandomWeights weights = random_weights(type, n_rows, n_in, rng_);
    const std::vector<float> values = random_floats(n_tokens * n_in, rng_);
    const Activations x(table_, activation_kind(type), n_tokens, n_in, values);
    const MatmulFn kernel = table_.matmul(type);
    std::vector<float> single(n_rows * n_tokens);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      for (std::size_t r = 0; r < n_rows; ++r) {
        single[t * n_rows + r] = multiply(kernel, weights.bytes.data() + r * stride, stride, 1,
                                          n_in, std::span(x.rows).subspan(t, 1))[0];
      }
    }
    for (std::size_t first = 0; first < n_tokens; ++first) {
      for (std::size_t n = 1; first + n <= n_tokens; ++n) {
        const std::vector<float> out = multiply(kernel, weights.bytes.data(), stride, n_rows, n_in,
                                                std::span(x.rows).subspan(first, n));
        const std::vector<float> want(
            single.begin() + static_cast<std::ptrdiff_t>(first * n_rows),
            single.begin() + static_cast<std::ptrdiff_t>((first + n) * n_rows));
        ASSERT_TRUE(same_bits(out, want))
            << quant::traits(type).name << " tokens " << first << " + " << n;
      }
    }
  }
}

TEST_P(KernelsTest, RowOperatorsMatchTheScalarOnesForEveryLengthUpTo257) {
  for (std::size_t n = 1; n <= 257; ++n) {
    const std::size_t shift = n % 3;
    std::vector<float> a = random_floats(n + shift, rng_);
    std::vector<float> b = random_floats(n + shift, rng_);
    for (float& v : a) v *= 10.0F;
    const float* x = a.data() + shift;
    const float* y = b.data() + shift;
    std::vector<float> got(n);
    std::vector<float> want(n);
    table_.rms_norm(x, y, n, 1e-5F, got.data());
    scalar_.rms_norm(x, y, n, 1e-5F, want.data());
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_NEAR(got[i], want[i], std::fabs(want[i]) * 0x1.0p-22F) << "rms_norm " << n;
    }
    table_.silu_mul(x, y, n, got.data());
    scalar_.silu_mul(x, y, n, want.data());
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_NEAR(got[i], want[i], std::fabs(want[i]) * 0x1.0p-20F) << "silu_mul " << x[i];
    }
    table_.add(x, y, n, got.data());
    scalar_.add(x, y, n, want.data());
    ASSERT_TRUE(same_bits(got, want)) << "add " << n;
    table_.scale_add(0.3F, x, n, got.data());
    scalar_.scale_add(0.3F, x, n, want.data());
    ASSERT_TRUE(same_bits(got, want)) << "scale_add " << n;
    std::vector<std::uint16_t> got16(n);
    std::vector<std::uint16_t> want16(n);
    table_.f32_to_f16(x, n, got16.data());
    scalar_.f32_to_f16(x, n, want16.data());
    ASSERT_EQ(got16, want16) << "f32_to_f16 " << n;
    if (n % 2 == 0) {
      for (const bool split : {false, true}) {
        got.assign(x, x + n);
        want = got;
        (split ? table_.rope_split_half : table_.rope_interleaved)(got.data(), y, n);
        (split ? scalar_.rope_split_half : scalar_.rope_interleaved)(want.data(), y, n);
        ASSERT_TRUE(same_bits(got, want)) << "rope " << n << (split ? " split" : " interleaved");
      }
    }
  }
}

TEST_P(KernelsTest, SiluGoesToZeroAndToItsArgument) {
  const std::vector<float> x = {-1e30F, -200.0F, -88.5F, -80.0F, 0.0F, 30.0F, 200.0F, 1e30F, NAN};
  const std::vector<float> ones(x.size(), 1.0F);
  std::vector<float> out(x.size());
  table_.silu_mul(x.data(), ones.data(), x.size(), out.data());
  // exp stops at 88: x / (1 + exp(88)) is 1e30 / 1.65e38 at worst.
  EXPECT_NEAR(out[0], 0.0F, 1e-8F);
  for (std::size_t i = 1; i <= 3; ++i) EXPECT_NEAR(out[i], 0.0F, 1e-30F);
  EXPECT_EQ(out[4], 0.0F);
  for (std::size_t i = 5; i <= 7; ++i) EXPECT_EQ(out[i], x[i]);
  EXPECT_TRUE(std::isnan(out[8]));
}

}  // namespace
}  // namespace recua::kernels
