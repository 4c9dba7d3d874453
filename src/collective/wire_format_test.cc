#include "collective/wire_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "collective/calibrate.h"
#include "collective/test_group.h"

namespace recua::collective {
namespace {

constexpr WireFormat kFormats[] = {WireFormat::kF32, WireFormat::kF16, WireFormat::kBF16,
                                   WireFormat::kI8};

/// What the header promises for a value whose block's largest magnitude is `largest`.
double bound(WireFormat format, double value, double largest) {
  switch (format) {
    case WireFormat::kF32:
      return 0.0;
    case WireFormat::kF16:
      return std::max(std::fabs(value) * 0x1.0p-11, 0x1.0p-25);
    case WireFormat::kBF16:
      return std::max(std::fabs(value) * 0x1.0p-8, 0x1.0p-134);
    case WireFormat::kI8:
      return std::max(largest / 253.0, 0x1.0p-119);
  }
  return 0.0;
}

double block_largest(std::span<const float> values, std::size_t i) {
  const std::size_t begin = i / kFormatBlock * kFormatBlock;
  double out = 0.0;
  for (std::size_t k = begin; k < std::min(values.size(), begin + kFormatBlock); ++k) {
    out = std::max<double>(out, std::fabs(values[k]));
  }
  return out;
}

TEST(WireFormat, KeepsToItsBoundForNumbersOfAllSizes) {
  for (const WireFormat format : kFormats) {
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
      SCOPED_TRACE(fmt::format("{}, seed {}", to_string(format), seed));
      Rng rng(seed);
      const int exponent_max = format == WireFormat::kF16 ? 15 : 126;
      const int exponent = static_cast<int>(rng.below(140)) - 126;
      const int spread = seed % 3 == 0 ? 0 : static_cast<int>(rng.below(30));
      std::vector<float> values(rng.below(200));
      for (float& value : values) {
        const int own =
            exponent + static_cast<int>(rng.below(static_cast<std::uint64_t>(spread) + 1));
        value = static_cast<float>(std::ldexp(rng.unit() * 2.0 - 1.0, std::min(own, exponent_max)));
      }
      std::vector<std::byte> bytes(wire_bytes(format, values.size()) + 1, std::byte{0xa5});
      encode(format, values, bytes.data());
      EXPECT_EQ(bytes.back(), std::byte{0xa5});
      std::vector<float> decoded(values.size());
      decode(format, bytes.data(), decoded);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double error = std::fabs(static_cast<double>(decoded[i]) - values[i]);
        ASSERT_LE(error, bound(format, values[i], block_largest(values, i))) << values[i];
      }
      round_values(format, values);
      EXPECT_EQ(values, decoded);
    }
  }
}

TEST(WireFormat, DoesNotHideWhatIsNotFinite) {
  for (const WireFormat format : kFormats) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> values(40, 1.0F);
      values[33] = bad;
      round_values(format, values);
      EXPECT_FALSE(std::isfinite(values[33])) << to_string(format);
      EXPECT_NEAR(values[0], 1.0F, 1.0 / 253) << to_string(format);  // Another block.
    }
  }
}

class WireFormatSum : public testing::TestWithParam<WireFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, WireFormatSum, testing::ValuesIn(kFormats),
                         [](const auto& test) { return to_string(test.param); });

// Both ways, all ranks: the same bits, and within the bound of what is exact.
TEST_P(WireFormatSum, IsTheSameEverywhereAndWithinItsBound) {
  const WireFormat format = GetParam();
  for (const Links links : {Links::kTcp, Links::kSharedMemory, Links::kRdma}) {
    for (const std::uint32_t n_ranks : {2U, 3U, 5U}) {
      TestGroupOptions options{.n_ranks = n_ranks, .links = links};
      options.communicator.sums = options.communicator.gathers = format;
      TestGroup group(options);
      for (const std::size_t n : {0U, 1U, 33U, 1000U, 20'001U}) {
        SCOPED_TRACE(fmt::format("{}, {}, {} ranks, {} values", to_string(format), to_string(links),
                                 n_ranks, n));
        std::vector<std::vector<float>> whole(n_ranks);
        std::vector<std::vector<float>> scattered(n_ranks);
        std::vector<std::vector<float>> gathered(n_ranks);
        group.run([&](ChannelCommunicator& communicator) {
          const std::uint32_t rank = communicator.rank();
          whole[rank] = scattered[rank] = test_values(n, rank, n);
          communicator.set_one_shot_values_max(n);
          ASSERT_TRUE(communicator.all_reduce(whole[rank]).ok());
          communicator.set_one_shot_values_max(0);
          ASSERT_TRUE(communicator.all_reduce(scattered[rank]).ok());
          std::vector<std::size_t> counts(n_ranks, n / 3);
          counts.back() = 5;
          gathered[rank].resize(n / 3 * (n_ranks - 1) + 5);
          const auto mine = test_values(n + 1, rank, counts[rank]);
          ASSERT_TRUE(communicator.all_gather(mine, counts, gathered[rank]).ok());
        });
        for (std::uint32_t rank = 0; rank < n_ranks; ++rank) {
          EXPECT_EQ(whole[rank], whole[0]);
          EXPECT_EQ(scattered[rank], whole[0]);
          EXPECT_EQ(gathered[rank], gathered[0]);
        }
        for (std::size_t i = 0; i < n; ++i) {
          double exact = 0.0;
          double allowed = 0.0;
          double magnitude = 0.0;
          for (std::uint32_t rank = 0; rank < n_ranks; ++rank) {
            const std::vector<float> part = test_values(n, rank, n);
            exact += part[i];
            magnitude += std::fabs(part[i]);
            allowed += bound(format, part[i], block_largest(part, i));
            if (n > 2000) break;  // Large vectors: the bits are compared above.
          }
          if (n > 2000) break;
          // The sum is rounded too, and each addition by 2^-24 of at most what has been added.
          const double largest = block_largest(whole[0], i);
          allowed += bound(format, whole[0][i], largest) * 1.01 + magnitude * n_ranks * 0x1.0p-23;
          ASSERT_LE(std::fabs(whole[0][i] - exact), allowed) << i;
        }
      }
    }
  }
}

TEST(ChooseSwitch, TakesTheBestSplitDespiteNoise) {
  using Point = Calibration::Point;
  const auto point = [](std::size_t n, int one_shot, int scattered) {
    return Point{
        .n_values = n, .one_shot = net::Duration(one_shot), .scattered = net::Duration(scattered)};
  };
  EXPECT_EQ(choose_switch({point(1024, 10, 20), point(2048, 15, 22), point(4096, 40, 30)}), 2048U);
  EXPECT_EQ(choose_switch({point(1024, 10, 20), point(2048, 25, 22), point(4096, 20, 30),
                           point(8192, 90, 40)}),
            4096U);  // One size that was disturbed decides nothing.
  EXPECT_EQ(choose_switch({point(1024, 30, 20), point(2048, 40, 22)}), 0U);
  EXPECT_GT(choose_switch({point(1024, 10, 20), point(2048, 15, 22)}), std::size_t{1} << 30U);
  EXPECT_EQ(choose_switch({}), 0U);
}

TEST(Calibrate, TakesLessThanAGigabytePerSecondForSlow) {
  using Point = Calibration::Point;
  const auto slow = [](int one_shot, int scattered) {
    return is_slow(Point{.n_values = 250'000,
                         .one_shot = std::chrono::microseconds(one_shot),
                         .scattered = std::chrono::microseconds(scattered)});
  };
  EXPECT_FALSE(slow(999, 5000));
  EXPECT_FALSE(slow(5000, 999));
  EXPECT_TRUE(slow(1001, 1001));
}

TEST(WireFormat, HasNamesAndNumbersBothWays) {
  for (const WireFormat format : kFormats) {
    EXPECT_EQ(wire_format_from_name(to_string(format)), format);
    EXPECT_EQ(wire_format_from_number(static_cast<std::uint32_t>(format)), format);
  }
  EXPECT_EQ(wire_format_from_name("F16"), std::nullopt);
  EXPECT_EQ(wire_format_from_number(2), std::nullopt);
  EXPECT_EQ(wire_format_from_number(0x18001), std::nullopt);
}

TEST(Calibrate, EndsAfterTheFirstSizeOnceItsTimeIsOver) {
  TestGroup group({.n_ranks = 2, .links = Links::kTcp});
  group.run([&](ChannelCommunicator& communicator) {
    const auto out =
        calibrate(communicator, group.clock, {.time_max = std::chrono::nanoseconds(1)});
    ASSERT_TRUE(out.ok()) << out.error().message;
    EXPECT_EQ(out->points.size(), communicator.rank() == 0 ? 1U : 0U);
  });
}

TEST(Calibrate, GivesAllRanksTheSameSwitch) {
  for (const bool is_fixed : {false, true}) {
    TestGroupOptions options{.n_ranks = 3, .links = Links::kSharedMemory};
    if (is_fixed) options.communicator.one_shot_values_max = 77;
    TestGroup group(options);
    std::array<std::size_t, 3> chosen{};
    group.run([&](ChannelCommunicator& communicator) {
      const auto out = calibrate(communicator, group.clock,
                                 {.time_max = std::chrono::hours(1), .values_max = 5000});
      ASSERT_TRUE(out.ok()) << out.error().message;
      // 1024, 2048 and 4096 values; the next ones are longer than any that would come.
      EXPECT_EQ(out->points.size(), is_fixed || communicator.rank() != 0 ? 0U : 3U);
      chosen[communicator.rank()] = communicator.one_shot_values_max();
      std::vector<float> values(10, 1.0F);
      EXPECT_TRUE(communicator.all_reduce(values).ok());
      EXPECT_EQ(values[9], 3.0F);
    });
    EXPECT_EQ(chosen[1], chosen[0]);
    EXPECT_EQ(chosen[2], chosen[0]);
    if (is_fixed) {
      EXPECT_EQ(chosen[0], 77U);
    }
  }
}

// 4 KiB cannot be summed over loopback at 1 GB/s, whatever else goes on.
TEST(Calibrate, HasAllRanksComputeMeanwhileIfAllMay) {
  for (const bool may_overlap : {false, true}) {
    TestGroup group({.n_ranks = 3, .links = Links::kTcp});
    group.run([&](ChannelCommunicator& communicator) {
      communicator.set_overlaps(!may_overlap);
      const auto out =
          calibrate(communicator, group.clock,
                    {.time_max = std::chrono::nanoseconds(1), .may_overlap = may_overlap});
      ASSERT_TRUE(out.ok()) << out.error().message;
      EXPECT_EQ(out->overlaps, may_overlap);
      EXPECT_EQ(communicator.overlaps(), may_overlap);
    });
  }
}

}  // namespace
}  // namespace recua::collective
