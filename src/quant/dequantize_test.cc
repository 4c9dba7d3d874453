#include "quant/dequantize.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::quant {
namespace {

std::string file_name(DataType type, const char* ending) {
  std::string name(traits(type).name);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return static_cast<char>(std::tolower(c)); });
  return fmt::format("{}/random/{}.{}", RECUA_GOLDEN_DIR, name, ending);
}

class DequantizeTest : public testing::TestWithParam<DataType> {};

TEST_P(DequantizeTest, GivesTheBitsOfTheGoldenVectors) {
  const DataType type = GetParam();
  const auto blocks = MappedFile::open(file_name(type, "blocks.bin"));
  const auto expected = MappedFile::open(file_name(type, "f32.bin"));
  ASSERT_TRUE(blocks.ok()) << blocks.error().message;
  ASSERT_TRUE(expected.ok()) << expected.error().message;
  const std::size_t n = expected->bytes().size() / sizeof(float);
  ASSERT_EQ(row_bytes(type, n), blocks->bytes().size());
  std::vector<float> out(n);
  dequantize_row(type, blocks->bytes().data(), n, out.data());
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t want = 0;
    std::memcpy(&want, expected->bytes().data() + i * 4, 4);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), want)
        << "element " << i << ": " << out[i] << " but should be " << std::bit_cast<float>(want);
  }
}

TEST_P(DequantizeTest, ReadsBlocksAtAnOddAddress) {
  const DataType type = GetParam();
  const auto blocks = MappedFile::open(file_name(type, "blocks.bin"));
  ASSERT_TRUE(blocks.ok()) << blocks.error().message;
  const std::size_t n = 256;
  std::vector<std::byte> shifted(row_bytes(type, n) + 1);
  std::memcpy(shifted.data() + 1, blocks->bytes().data(), row_bytes(type, n));
  std::vector<float> a(n), b(n);
  dequantize_row(type, blocks->bytes().data(), n, a.data());
  dequantize_row(type, shifted.data() + 1, n, b.data());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), n * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Types, DequantizeTest,
                         testing::Values(DataType::kQ8_0, DataType::kQ4_0, DataType::kQ4_1,
                                         DataType::kQ5_0, DataType::kQ5_1, DataType::kQ2_K,
                                         DataType::kQ3_K, DataType::kQ4_K, DataType::kQ5_K,
                                         DataType::kQ6_K),
                         [](const auto& test) { return std::string(traits(test.param).name); });

// The types without golden vectors, from blocks written by hand. 0x3c00 is 1, 0x3800 is 0.5.
TEST(Dequantize, LooksUpTheValuesOfIq4Nl) {
  BlockIQ4_NL block{.d = 0x3800, .qs = {}};
  for (std::size_t i = 0; i < 16; ++i) {
    block.qs[i] = static_cast<std::uint8_t>(i | (15 - i) << 4U);
  }
  std::vector<float> out(32);
  dequantize_row(DataType::kIQ4_NL, reinterpret_cast<const std::byte*>(&block), 32, out.data());
  const std::vector<float> half = {-63.5F, -52.0F, -41.5F, -32.5F, -24.5F, -17.5F, -11.0F, -5.0F,
                                   0.5F,   6.5F,   12.5F,  19.0F,  26.5F,  34.5F,  44.5F,  56.5F};
  EXPECT_EQ(std::vector<float>(out.begin(), out.begin() + 16), half);
  EXPECT_EQ(std::vector<float>(out.rbegin(), out.rbegin() + 16), half);
}

TEST(Dequantize, ScalesTheGroupsOfIq4Xs) {
  BlockIQ4_XS block{.d = 0x3c00, .scales_high = 0, .scales = {}, .qs = {}};
  // Group 0: 63 - 32 = 31; group 1: 0 - 32; group 2: 0x2a - 32 = 10; group 7: 0x15 - 32 = -11.
  // By hand: low nibbles f, 0, a and 5, upper bits 3, 0, 2 and 1.
  block.scales = {0x0f, 0x0a, 0x00, 0x50};
  block.scales_high = 3U | 2U << 4U | 1U << 14U;
  block.qs[0] = 0x8f;         // Elements 0 and 16: 113 and 1.
  block.qs[17] = 0x70;        // Group 1, elements 1 and 17: -127 and -10.
  block.qs[32] = 0x09;        // Group 2, element 0: 13.
  block.qs[7 * 16 + 15] = 6;  // Group 7, elements 15 and 31: -22 and -127.
  std::vector<float> out(256);
  dequantize_row(DataType::kIQ4_XS, reinterpret_cast<const std::byte*>(&block), 256, out.data());
  EXPECT_EQ(out[0], 31.0F * 113);
  EXPECT_EQ(out[16], 31.0F);
  EXPECT_EQ(out[33], -32.0F * -127);
  EXPECT_EQ(out[49], -32.0F * -10);
  EXPECT_EQ(out[64], 10.0F * 13);
  EXPECT_EQ(out[7 * 32 + 15], -11.0F * -22);
  EXPECT_EQ(out[7 * 32 + 31], -11.0F * -127);
  for (std::size_t g = 0; g < 8; ++g) {
    BlockIQ4_XS other{.d = 0, .scales_high = 0, .scales = {}, .qs = {}};
    set_scale_iq4_xs(other, g, 0x2d);
    EXPECT_EQ(scale_iq4_xs(other, g), 0x2d);
    EXPECT_EQ(scale_iq4_xs(other, (g + 1) % 8), 0);
  }
}

TEST(Dequantize, ReadsTheSmallFloatsOfMxfp4) {
  BlockMXFP4 block{.e = 127, .qs = {}};  // 2^0, of which the doubled values take half.
  for (std::size_t i = 0; i < 16; ++i) {
    block.qs[i] = static_cast<std::uint8_t>(i | (15 - i) << 4U);
  }
  std::vector<float> out(32);
  const auto read = [&] {
    dequantize_row(DataType::kMXFP4, reinterpret_cast<const std::byte*>(&block), 32, out.data());
    return std::vector<float>(out.begin(), out.begin() + 16);
  };
  const std::vector<float> values = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                     -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};
  EXPECT_EQ(read(), values);
  EXPECT_EQ(std::vector<float>(out.rbegin(), out.rbegin() + 16), values);
  for (const int e : {0, 1, 2, 130, 254, 255}) {
    block.e = static_cast<std::uint8_t>(e);
    EXPECT_EQ(read()[2], std::ldexp(1.0F, e - 127)) << e;
  }
}

TEST(DataTypes, AreFoundByNumberAndByNameInAnyCase) {
  for (const DataType type : kAllDataTypes) {
    EXPECT_EQ(data_type_from_number(static_cast<std::uint32_t>(type)), type);
    EXPECT_EQ(data_type_from_name(traits(type).name), type);
  }
  EXPECT_EQ(data_type_from_name("q4_k"), DataType::kQ4_K);
  EXPECT_EQ(data_type_from_name("bf16"), DataType::kBF16);
  EXPECT_EQ(data_type_from_name("Q4_K_M"), std::nullopt);
  EXPECT_EQ(data_type_from_name(""), std::nullopt);
  EXPECT_EQ(data_type_from_number(4), std::nullopt);
  EXPECT_EQ(data_type_from_number(0xffffffff), std::nullopt);
}

TEST(Half, EveryF16SurvivesAWayThroughF32) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = f16_to_f32(half);
    if ((bits & 0x7fff) > 0x7c00) {
      EXPECT_TRUE(std::isnan(wide));
      EXPECT_EQ(f32_to_f16(wide), half | 0x0200) << bits;  // Quiet now.
    } else {
      EXPECT_EQ(f32_to_f16(wide), half) << bits;
      const int exponent = static_cast<int>((bits >> 10) & 31);
      const int mantissa = static_cast<int>(bits & 1023);
      if (exponent == 31) continue;
      const double value =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(wide, static_cast<float>((bits & 0x8000) != 0 ? -value : value)) << bits;
    }
  }
}

TEST(Half, RoundsToTheNearestF16AndTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {  // Every gap between two neighbours.
    const auto below = static_cast<std::uint16_t>(bits);
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const float low = f16_to_f32(below);
    const float high = bits == 0x7bff ? 65536.0F : f16_to_f32(above);
    const float middle = low + (high - low) / 2;
    EXPECT_EQ(f32_to_f16(middle), (bits & 1) != 0 ? above : below) << bits;
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 0.0F)), below) << bits;
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 1e9F)), above) << bits;
    EXPECT_EQ(f32_to_f16(-std::nextafter(middle, 0.0F)), below | 0x8000) << bits;
  }
  EXPECT_EQ(f32_to_f16(1e9F), 0x7c00);
  EXPECT_EQ(f32_to_f16(-HUGE_VALF), 0xfc00);
  EXPECT_EQ(f32_to_f16(1e-9F), 0);
  EXPECT_EQ(f32_to_f16(-1e-40F), 0x8000);
  EXPECT_EQ(f32_to_f16(NAN) & 0x7e00, 0x7e00);
}

TEST(Half, RoundsToTheNearestBf16AndTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = bf16_to_f32(half);
    if (std::isnan(wide)) {
      EXPECT_EQ(f32_to_bf16(wide), half | 0x0040);
      continue;
    }
    EXPECT_EQ(f32_to_bf16(wide), half);
    if (std::isinf(wide)) continue;
    const auto tie = std::bit_cast<float>((bits << 16) | 0x8000);
    EXPECT_EQ(f32_to_bf16(tie), static_cast<std::uint16_t>(bits + (bits & 1))) << bits;
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>((bits << 16) | 0x7fff)), half) << bits;
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>((bits << 16) | 0x8001)), bits + 1) << bits;
  }
}

}  // namespace
}  // namespace recua::quant
