#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "quant/dequantize.h"
#include "quant/half.h"

namespace recua::quant {
namespace {

std::vector<float> there_and_back(DataType type, const std::vector<float>& x) {
  std::vector<std::byte> blocks(row_bytes(type, x.size()));
  quantize_row(type, x.data(), x.size(), blocks.data());
  std::vector<float> out(x.size());
  dequantize_row(type, blocks.data(), x.size(), out.data());
  return out;
}

std::vector<float> normal_row(std::size_t n, std::uint64_t seed, double deviation = 1.0) {
  Rng rng(seed);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(deviation * rng.normal());
  return x;
}

double rms(const std::vector<float>& x) {
  double sum = 0.0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

double rms_error(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> difference(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return rms(difference);
}

bool is_plain(DataType type) { return traits(type).block_size == 1; }

/// Relative root mean square error for normally distributed weights. What the best scalar quantizer
/// of so many levels reaches per group (Max 1960) plus the rounding of scales, measured, plus 3 %.
double error_bound(DataType type) {
  switch (type) {
    case DataType::kF32:
      return 0.0;
    case DataType::kF16:
      return 2.2e-4;
    case DataType::kBF16:
      return 1.7e-3;
    case DataType::kQ8_0:
      return 5.6e-3;
    case DataType::kQ4_0:
      return 0.0827;
    case DataType::kQ4_1:
      return 0.0718;
    case DataType::kQ5_0:
      return 0.0410;
    case DataType::kQ5_1:
      return 0.0348;
    case DataType::kQ2_K:
      return 0.279;
    case DataType::kQ3_K:
      return 0.1471;
    case DataType::kQ4_K:
      return 0.0728;
    case DataType::kQ5_K:
      return 0.0364;
    case DataType::kQ6_K:
      return 0.0176;
    case DataType::kIQ4_NL:
      return 0.0751;
    case DataType::kIQ4_XS:
      return 0.0758;
    case DataType::kMXFP4:
      return 0.115;
  }
  return 0.0;
}

class QuantizeTest : public testing::TestWithParam<DataType> {};

TEST_P(QuantizeTest, LosesNoMoreThanTheTypeMust) {
  for (const double deviation : {1.0, 0.02, 300.0}) {
    const std::vector<float> x = normal_row(64 * 256, 7, deviation);
    const double error = rms_error(there_and_back(GetParam(), x), x) / rms(x);
    EXPECT_LE(error, error_bound(GetParam())) << "deviation " << deviation;
  }
}

TEST_P(QuantizeTest, KeepsZeros) {
  const std::vector<float> zeros(512, 0.0F);
  EXPECT_EQ(there_and_back(GetParam(), zeros), zeros);
}

TEST_P(QuantizeTest, KeepsConstantsOfEitherSign) {
  // Mostly the rounding of an F16 scale; for 0.013 that of Q6_K is subnormal, a multiple of 2^-24
  // near 53 * 2^-24. MXFP4 has 4, 6, 8 and 12 times powers of two only.
  const float most = GetParam() == DataType::kMXFP4 ? 0.2F : 0.008F;
  for (const float value : {1.0F, -1.0F, 0.013F, -250.0F, 65504.0F, -65504.0F}) {
    const std::vector<float> x(256, value);
    for (const float v : there_and_back(GetParam(), x)) {
      ASSERT_NEAR(v, value, std::fabs(value) * most) << value;
    }
  }
}

TEST_P(QuantizeTest, KeepsRowsOfOneSign) {
  std::vector<float> x = normal_row(256 * 8, 3);
  for (const float sign : {1.0F, -1.0F}) {
    for (float& v : x) v = sign * std::fabs(v);
    const double error = rms_error(there_and_back(GetParam(), x), x) / rms(x);
    // The types without an offset waste half of their levels here.
    EXPECT_LE(error, 2.0 * error_bound(GetParam())) << sign;
  }
}

TEST_P(QuantizeTest, KeepsALoneOutlier) {
  std::vector<float> x(256, 0.001F);
  x[77] = 100.0F;
  const std::vector<float> out = there_and_back(GetParam(), x);
  EXPECT_NEAR(out[77], 100.0F, GetParam() == DataType::kMXFP4 ? 4.0F : 1.0F);
}

TEST_P(QuantizeTest, GivesTheSameBytesForTheSameRowAnywhere) {
  const DataType type = GetParam();
  const std::vector<float> x = normal_row(1024, 11);
  std::vector<std::byte> whole(row_bytes(type, 1024));
  std::vector<std::byte> piece(row_bytes(type, 256) + 1);
  quantize_row(type, x.data(), 1024, whole.data());
  for (std::size_t i = 0; i < 4; ++i) {
    quantize_row(type, x.data() + 256 * i, 256, piece.data() + 1);
    EXPECT_EQ(std::memcmp(whole.data() + i * row_bytes(type, 256), piece.data() + 1,
                          row_bytes(type, 256)),
              0);
  }
}

TEST_P(QuantizeTest, ChangesLittleWhenDoneAgain) {
  const std::vector<float> x = normal_row(64 * 256, 5);
  const std::vector<float> once = there_and_back(GetParam(), x);
  const std::vector<float> twice = there_and_back(GetParam(), once);
  if (is_plain(GetParam()) || GetParam() == DataType::kQ8_0) {
    EXPECT_EQ(twice, once);
  } else {
    // Values already on a grid are hit again, or nearly: the search may settle on another grid.
    EXPECT_LE(rms_error(twice, once) / rms(once), 0.5 * error_bound(GetParam()));
  }
}

TEST_P(QuantizeTest, GivesFiniteNumbersForAnything) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float huge = std::numeric_limits<float>::max();
  const float denormal = std::numeric_limits<float>::denorm_min();
  const std::vector<float> odd = {infinity,  -infinity, NAN,    huge,     -huge,     denormal,
                                  -denormal, 1e-20F,    -1e-8F, 65504.0F, -65504.0F, 1e6F,
                                  0.0F,      -0.0F,     1.0F,   6e-8F};
  Rng rng(13);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> x(256);
    const std::uint64_t n_kinds = 1 + rng.below(odd.size());
    const std::uint64_t first = rng.below(odd.size());
    for (float& v : x) v = odd[(first + rng.below(n_kinds)) % odd.size()];
    if (is_plain(GetParam())) continue;  // They keep infinities and NaN.
    const std::vector<float> out = there_and_back(GetParam(), x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_TRUE(std::isfinite(out[i]))
          << "round " << round << " element " << i << " was " << x[i];
      if (std::isnan(x[i])) continue;
      const float clamped = std::clamp(x[i], -kF16Max, kF16Max);
      ASSERT_LE(std::fabs(out[i] - clamped), 65504.0F * 0.5F) << "element " << i << " was " << x[i];
    }
  }
}

TEST_P(QuantizeTest, TurnsTinyNumbersIntoZeroOrSomethingTiny) {
  for (const float scale : {1e-44F, 1e-38F, 1e-20F, 1e-10F, 1e-8F, 1e-6F}) {
    std::vector<float> x = normal_row(512, 17);
    for (float& v : x) v *= scale;
    for (const float v : there_and_back(GetParam(), x))
      ASSERT_LE(std::fabs(v), 4.5F * scale + 4e-6F);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, QuantizeTest, testing::ValuesIn(kAllDataTypes),
                         [](const auto& test) { return std::string(traits(test.param).name); });

TEST(Quantize, KeepsNanAndInfinityInF16AndBf16) {
  const std::vector<float> x = {NAN, HUGE_VALF, -HUGE_VALF, 1e30F};
  for (const DataType type : {DataType::kF16, DataType::kBF16}) {
    const std::vector<float> out = there_and_back(type, x);
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_EQ(out[1], HUGE_VALF);
    EXPECT_EQ(out[2], -HUGE_VALF);
  }
  EXPECT_EQ(there_and_back(DataType::kF16, x)[3], HUGE_VALF);
  EXPECT_TRUE(std::isfinite(there_and_back(DataType::kBF16, x)[3]));
}

TEST(Quantize, FindsTheFirstNumberThatIsNotFinite) {
  std::vector<float> x(100, 1.0F);
  EXPECT_EQ(first_not_finite(x), 100U);
  x[41] = NAN;
  x[40] = -HUGE_VALF;
  EXPECT_EQ(first_not_finite(x), 40U);
  EXPECT_EQ(first_not_finite({}), 0U);
}

}  // namespace
}  // namespace recua::quant
