// Packing loses nothing, and products from packed weights are those of the rows they came from.
#include "kernels/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

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

// All groups of a matrix, as far from any alignment as asked for.
struct PackedMatrix {
  PackedMatrix(DataType type, const std::vector<std::byte>& rows, std::size_t n_rows,
               std::size_t n_in, std::size_t shift)
      : group_bytes(packed_group_bytes(type, n_in)),
        bytes(shift + n_packed_groups(type, n_rows) * group_bytes, std::byte{0xee}),
        data(bytes.data() + shift) {
    const std::size_t group_rows = packed_rows(type);
    for (std::size_t r = 0; r < n_rows; r += group_rows) {
      pack_group(type, rows.data() + r * quant::row_bytes(type, n_in),
                 std::min(group_rows, n_rows - r), n_in, data + r / group_rows * group_bytes);
    }
  }
  std::size_t group_bytes;
  std::vector<std::byte> bytes;
  std::byte* data;
};

TEST(PackedWeights, EveryRowComesBackAsItWas) {
  Rng rng(5);
  for (const DataType type : quant::kAllDataTypes) {
    const quant::DataTypeTraits traits = quant::traits(type);
    const std::size_t group_rows = packed_rows(type);
    for (std::size_t n_rows = 1; n_rows <= group_rows; ++n_rows) {
      const std::size_t n_in = 5 * traits.block_size;
      const RandomWeights weights = random_weights(type, n_rows, n_in, rng);
      const PackedMatrix packed(type, weights.bytes, n_rows, n_in, 0);
      const std::size_t row_bytes = quant::row_bytes(type, n_in);
      const std::size_t piece_bytes = group_rows * traits.block_bytes;
      std::vector<std::byte> piece(piece_bytes);
      pack_piece(type, weights.bytes.data() + 3 * traits.block_bytes, row_bytes, n_rows,
                 piece.data());
      ASSERT_TRUE(std::equal(piece.begin(), piece.end(), packed.data + 3 * piece_bytes))
          << traits.name << " block 3 alone";
      std::vector<std::byte> row(row_bytes);
      for (std::size_t r = 0; r < group_rows; ++r) {
        unpack_blocks(type, packed.data, r, 0, 5, row.data());
        std::vector<std::byte> want(row_bytes);  // Rows that are missing are zeros.
        if (r < n_rows) std::memcpy(want.data(), weights.bytes.data() + r * row_bytes, row_bytes);
        ASSERT_EQ(row, want) << traits.name << " row " << r << "/" << n_rows;
        std::vector<std::byte> two(2 * traits.block_bytes);
        unpack_blocks(type, packed.data, r, 3, 2, two.data());
        ASSERT_TRUE(std::equal(two.begin(), two.end(), want.end() - std::ssize(two)))
            << traits.name << " blocks 3 and 4 of row " << r;
      }
    }
  }
}

TEST(PackedWeights, TakeTheBytesOfTheirRows) {
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t n = quant::traits(type).block_size == 1 ? 32 : 8;
    EXPECT_EQ(packed_group_bytes(type, 1024), n * quant::row_bytes(type, 1024));
    EXPECT_EQ(n_packed_groups(type, 1), 1U);
    EXPECT_EQ(n_packed_groups(type, n), 1U);
    EXPECT_EQ(n_packed_groups(type, n + 1), 2U);
  }
}

// Lengths in blocks, so that all tails of loops over them occur.
std::size_t n_lengths(std::size_t block) {
  if (block == 1) return 70;
  return block == 32 ? 35 : 7;
}

// The F16 numbers of a block; the exponent of MXFP4 becomes 0.
void put_scales(DataType type, std::uint16_t value, std::vector<std::byte>& block) {
  const auto put = [&](std::size_t at) { std::memcpy(block.data() + at, &value, 2); };
  switch (type) {
    case DataType::kMXFP4:
      block[0] = std::byte{128};
      return;
    case DataType::kQ2_K:
      put(80);
      return put(82);
    case DataType::kQ3_K:
      return put(108);
    case DataType::kQ6_K:
      return put(208);
    case DataType::kQ4_1:
    case DataType::kQ5_1:
    case DataType::kQ4_K:
    case DataType::kQ5_K:
      put(2);
      return put(0);
    default:
      return put(0);
  }
}

class PackedProductTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void SetUp() override {
    if (!sys::supported(GetParam())) GTEST_SKIP() << "this CPU lacks " << to_string(GetParam());
  }
  std::vector<DataType> types() const {
    std::vector<DataType> out;
    for (const DataType type : quant::kAllDataTypes) {
      if (table_.packed_matmul(type) != nullptr) out.push_back(type);
    }
    return out;
  }
  const KernelTable& table_ = kernel_table_or_scalar(GetParam());
  Rng rng_{17};
};
INSTANTIATE_TEST_SUITE_P(Sets, PackedProductTest,
                         ::testing::ValuesIn(sys::all_instruction_sets().begin(),
                                             sys::all_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

// As for the products with rows as they are (kernels_test.cc): what is left against double is the
// kernel's own rounding, n * 2^-23 of the absolute products.
TEST_P(PackedProductTest, MatchesDoubleForEveryLengthAndTileAtAnyAlignment) {
  for (const DataType type : types()) {
    const std::size_t block = quant::traits(type).block_size;
    const ActivationKind kind = table_.packed_activation_kind(type);
    for (std::size_t n_blocks = 1; n_blocks <= n_lengths(block); ++n_blocks) {
      const std::size_t n_in = n_blocks * block;
      const std::size_t n_rows = 1 + rng_.below(140);
      const std::size_t n_tokens = 1 + rng_.below(13);
      const RandomWeights weights = random_weights(type, n_rows, n_in, rng_);
      const PackedMatrix packed(type, weights.bytes, n_rows, n_in, 1 + rng_.below(31));
      const std::vector<float> values = random_floats(n_tokens * n_in, rng_);
      const Activations x(table_, kind, n_tokens, n_in, values);
      const std::vector<float> out = multiply(table_.packed_matmul(type), packed.data,
                                              packed.group_bytes, n_rows, n_in, x.rows);
      expect_products(out, type, weights, n_rows, n_in, kind, x);
    }
  }
}

// With scales of 1 and one block the result is an exact integer: the largest weights against the
// largest activations, of either sign and of mixed signs, show any overflow of 16 or 32 bits.
TEST_P(PackedProductTest, IsExactAtTheExtremes) {
  for (const DataType type : types()) {
    const std::size_t block = quant::traits(type).block_size;
    if (block == 1) continue;
    for (const int fill : {0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0}) {
      std::vector<std::byte> bytes(quant::row_bytes(type, block), static_cast<std::byte>(fill));
      put_scales(type, quant::f32_to_f16(1.0F), bytes);
      const PackedMatrix packed(type, bytes, 1, block, 0);
      std::vector<float> row(block);
      quant::dequantize_row(type, bytes.data(), block, row.data());
      for (const std::size_t period : {1U, 2U, 4U, 16U}) {
        for (const float sign : {127.0F, -127.0F}) {
          std::vector<float> values;  // Six tokens, so that the tiles are shown, too.
          for (std::size_t i = 0; i < 6 * block; ++i) {
            values.push_back(i % (2 * period) < period || period == 1 ? sign : -sign);
          }
          double want = 0.0;
          for (std::size_t i = 0; i < block; ++i) want += static_cast<double>(row[i]) * values[i];
          for (const std::size_t n_tokens : {1U, 2U, 6U}) {
            const Activations x(table_, table_.packed_activation_kind(type), n_tokens, block,
                                values);
            const std::vector<float> out = multiply(table_.packed_matmul(type), packed.data,
                                                    packed.group_bytes, 1, block, x.rows);
            // Sums up to 2.6e8 are rounded when they become f32; an overflow is off by 2^16.
            ASSERT_NEAR(out[n_tokens - 1], want, 64.0)
                << quant::traits(type).name << " fill " << fill << " sign " << sign << " period "
                << period;
          }
        }
      }
    }
  }
}

// More tokens than share one unpacking, and rows that end within a group.
TEST_P(PackedProductTest, AnOutputDoesNotDependOnTheTileItIsIn) {
  for (const DataType type : types()) {
    const std::size_t block = quant::traits(type).block_size;
    const std::size_t n_in = block == 1 ? 601 : (block == 32 ? 37 : 5) * block;
    const std::size_t group_rows = packed_rows(type);
    const std::size_t n_rows = 75;
    const std::size_t n_tokens = 101;
    const RandomWeights weights = random_weights(type, n_rows, n_in, rng_);
    const PackedMatrix packed(type, weights.bytes, n_rows, n_in, 0);
    const std::vector<float> values = random_floats(n_tokens * n_in, rng_);
    const Activations x(table_, table_.packed_activation_kind(type), n_tokens, n_in, values);
    const MatmulFn kernel = table_.packed_matmul(type);
    std::vector<float> single;
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const std::vector<float> one = multiply(kernel, packed.data, packed.group_bytes, n_rows, n_in,
                                              std::span(x.rows).subspan(t, 1));
      single.insert(single.end(), one.begin(), one.end());
    }
    for (const std::size_t n :
         {2U,  3U,  4U,  5U,  6U,  7U,  8U,  9U,  10U, 11U, 12U, 13U,  14U, 15U,
          16U, 17U, 24U, 25U, 31U, 32U, 33U, 95U, 96U, 97U, 98U, 100U, 101U}) {
      const std::size_t first = rng_.below(n_tokens - n + 1);
      const std::vector<float> out = multiply(kernel, packed.data, packed.group_bytes, n_rows, n_in,
                                              std::span(x.rows).subspan(first, n));
      const std::vector<float> want(
          single.begin() + static_cast<std::ptrdiff_t>(first * n_rows),
          single.begin() + static_cast<std::ptrdiff_t>((first + n) * n_rows));
      ASSERT_TRUE(same_bits(out, want))
          << quant::traits(type).name << " tokens " << first << " + " << n;
      // The last rows alone, beginning with another group.
      const std::vector<float> rest =
          multiply(kernel, packed.data + packed.group_bytes, packed.group_bytes,
                   n_rows - group_rows, n_in, std::span(x.rows).subspan(first, n));
      for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t r = group_rows; r < n_rows; ++r) {
          ASSERT_EQ(rest[t * (n_rows - group_rows) + r - group_rows], out[t * n_rows + r]);
        }
      }
    }
  }
}

#if defined(__aarch64__)
// Their integers are exact and their f32 operations one source, for packed weights and for rows.
TEST(PackedProduct, ArmSetsDifferInNoBit) {
  Rng rng(23);
  const KernelTable& neon = kernel_table(sys::InstructionSet::kNeon);
  for (const DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    if (block == 1) continue;
    const std::size_t n_in = 3 * block;
    const std::size_t n_rows = 21;
    const std::size_t n_tokens = 15;
    const RandomWeights weights = random_weights(type, n_rows, n_in, rng);
    const PackedMatrix packed(type, weights.bytes, n_rows, n_in, 1);
    const std::vector<float> values = random_floats(n_tokens * n_in, rng);
    const Activations x(neon, activation_kind(type), n_tokens, n_in, values);
    const std::vector<float> want =
        multiply(neon.packed_matmul(type), packed.data, packed.group_bytes, n_rows, n_in, x.rows);
    for (const sys::InstructionSet set : sys::supported_instruction_sets().subspan(1)) {
      const KernelTable& table = kernel_table(set);
      ASSERT_TRUE(same_bits(multiply(table.packed_matmul(type), packed.data, packed.group_bytes,
                                     n_rows, n_in, x.rows),
                            want))
          << to_string(set) << " packed " << quant::traits(type).name;
      ASSERT_TRUE(same_bits(multiply(table.matmul(type), weights.bytes.data(),
                                     quant::row_bytes(type, n_in), n_rows, n_in, x.rows),
                            want))
          << to_string(set) << " rows " << quant::traits(type).name;
    }
  }
}
#endif

}  // namespace
}  // namespace recua::kernels
