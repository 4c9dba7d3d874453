// Ranks on threads of their own, over every transport.
#include <atomic>
#include <bit>
#include <limits>
#include <numeric>
#include <tuple>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "collective/test_group.h"

namespace recua::collective {
namespace {

/// Sizes around cut points: of a cache line, of 32 values, of a message (992 values in 4096 bytes).
constexpr std::size_t kSizes[] = {0, 1, 7, 32, 33, 991, 992, 993, 1024, 5000, 20'001};
constexpr std::size_t kAlways = std::numeric_limits<std::size_t>::max();

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  });
}

class Collective : public testing::TestWithParam<std::tuple<Links, std::uint32_t>> {
 protected:
  static TestGroupOptions options() {
    return {.n_ranks = std::get<1>(GetParam()), .links = std::get<0>(GetParam())};
  }
};

INSTANTIATE_TEST_SUITE_P(Groups, Collective,
                         testing::Combine(testing::Values(Links::kTcp, Links::kTcpApart,
                                                          Links::kSharedMemory, Links::kRdma),
                                          testing::Values(1U, 2U, 3U, 5U, 7U)),
                         [](const auto& test) {
                           return fmt::format("{}_{}", to_string(std::get<0>(test.param)),
                                              std::get<1>(test.param));
                         });

/// Of vectors of all sizes, both ways, by reduce(values, seed): the serial sum, bit for bit.
template <class Reduce>
void expect_serial_sums(ChannelCommunicator& communicator, Reduce reduce) {
  std::uint64_t seed = 0;
  for (const std::size_t n : kSizes) {
    const std::vector<float> expected = serial_sum(++seed, communicator.n_ranks(), n);
    for (const std::size_t one_shot_max : {kAlways, std::size_t{0}}) {
      communicator.set_one_shot_values_max(one_shot_max);
      std::vector<float> values = test_values(seed, communicator.rank(), n);
      const Result<void> reduced = reduce(std::span(values), seed);
      ASSERT_TRUE(reduced.ok()) << reduced.error().message;
      EXPECT_TRUE(same_bits(values, expected)) << fmt::format(
          "rank {}, {} values, one-shot up to {}", communicator.rank(), n, one_shot_max);
    }
  }
}

TEST_P(Collective, AllReduceGivesTheSerialSumBitForBitBothWays) {
  TestGroup group(options());
  group.run([&](ChannelCommunicator& communicator) {
    expect_serial_sums(communicator, [&](std::span<float> values, std::uint64_t) {
      return communicator.all_reduce(values);
    });
  });
}

TEST_P(Collective, AllReduceInTwoHalvesGivesTheSameBits) {
  TestGroup group(options());
  group.run([&](ChannelCommunicator& communicator) {
    expect_serial_sums(communicator,
                       [&](std::span<float> values, std::uint64_t seed) -> Result<void> {
                         RECUA_RETURN_IF_ERROR(communicator.begin_all_reduce(values));
                         for (std::size_t i = 0; i < seed % 4; ++i) {
                           std::this_thread::yield();
                           RECUA_RETURN_IF_ERROR(communicator.help_all_reduce());
                         }
                         return communicator.finish_all_reduce();
                       });
  });
}

// The others have slept for a while when rank 0 begins; then it does nothing until they are done.
TEST_P(Collective, WhoBeginsIsWaitedForNoLonger) {
  TestGroupOptions patient = options();
  patient.communicator.spin = net::Duration::zero();
  TestGroup group(patient);
  std::atomic<std::uint32_t> n_done = 0;
  group.run([&](ChannelCommunicator& communicator) {
    communicator.set_one_shot_values_max(kAlways);
    std::vector<float> values(100, 1.0F);
    ASSERT_TRUE(communicator.barrier().ok());
    if (communicator.rank() != 0) {
      const Result<void> reduced = communicator.all_reduce(values);
      ++n_done;
      ASSERT_TRUE(reduced.ok()) << reduced.error().message;
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    ASSERT_TRUE(communicator.begin_all_reduce(values).ok());
    while (n_done + 1 < communicator.n_ranks()) std::this_thread::yield();
    ASSERT_TRUE(communicator.finish_all_reduce().ok());
    EXPECT_EQ(values[99], static_cast<float>(communicator.n_ranks()));
  });
}

TEST_P(Collective, ReduceScatterLeavesTheOtherPartsAlone) {
  TestGroup group(options());
  group.run([&](ChannelCommunicator& communicator) {
    for (const std::size_t scale : {0U, 1U, 300U}) {
      // Uneven, some empty, some larger than a message, and with seams anywhere.
      std::vector<std::size_t> counts(communicator.n_ranks());
      std::size_t n = 0;
      std::size_t begin = 0;
      for (std::uint32_t r = 0; r < counts.size(); ++r) {
        counts[r] = scale * (r * r + 1) * (r % 3 != 1);
        if (r == communicator.rank()) begin = n;
        n += counts[r];
      }
      std::vector<float> expected = test_values(scale, communicator.rank(), n);
      const std::vector<float> sum = serial_sum(scale, communicator.n_ranks(), n);
      std::copy_n(sum.begin() + static_cast<std::ptrdiff_t>(begin), counts[communicator.rank()],
                  expected.begin() + static_cast<std::ptrdiff_t>(begin));
      std::vector<float> values = test_values(scale, communicator.rank(), n);
      const Result<void> reduced = communicator.reduce_scatter(values, counts);
      ASSERT_TRUE(reduced.ok()) << reduced.error().message;
      EXPECT_TRUE(same_bits(values, expected));
    }
  });
}

TEST_P(Collective, AllGatherTakesUnevenAndEmptyParts) {
  TestGroup group(options());
  group.run([&](ChannelCommunicator& communicator) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      std::vector<std::size_t> counts(communicator.n_ranks());
      std::vector<float> expected;
      Rng rng(seed);
      for (std::uint32_t r = 0; r < counts.size(); ++r) {
        counts[r] = seed == 0 || rng.below(3) == 0 ? 0 : rng.below(seed < 3 ? 10 : 3000);
        const std::vector<float> part = test_values(seed, r, counts[r]);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      const std::vector<float> mine =
          test_values(seed, communicator.rank(), counts[communicator.rank()]);
      std::vector<float> out(expected.size(), -1.0F);
      const Result<void> gathered = communicator.all_gather(mine, counts, out);
      ASSERT_TRUE(gathered.ok()) << gathered.error().message;
      EXPECT_TRUE(same_bits(out, expected));
      // And from where it belongs.
      const std::span<float> place = std::span(out).subspan(
          std::accumulate(counts.begin(), counts.begin() + communicator.rank(), std::size_t{0}),
          mine.size());
      const Result<void> again = communicator.all_gather(place, counts, out);
      ASSERT_TRUE(again.ok()) << again.error().message;
      EXPECT_TRUE(same_bits(out, expected));
    }
  });
}

TEST_P(Collective, BroadcastBringsTheRootsValues) {
  TestGroup group(options());
  group.run([&](ChannelCommunicator& communicator) {
    for (const std::size_t n : {0U, 1U, 5000U}) {
      for (std::uint32_t root = 0; root < communicator.n_ranks(); ++root) {
        std::vector<float> values = test_values(n, communicator.rank(), n);
        const Result<void> sent = communicator.broadcast(values, root);
        ASSERT_TRUE(sent.ok()) << sent.error().message;
        EXPECT_TRUE(same_bits(values, test_values(n, root, n)));
      }
    }
    // One root after the other, without anything in return: its ring is used up many times.
    std::vector<float> values(100);
    for (int i = 0; i < 200; ++i) {
      values[0] = communicator.rank() == 0 ? static_cast<float>(i) : -1.0F;
      ASSERT_TRUE(communicator.broadcast(values, 0).ok());
      EXPECT_EQ(values[0], static_cast<float>(i));
    }
  });
}

TEST_P(Collective, BarrierHoldsEverybodyUntilTheLastHasCome) {
  TestGroup group(options());
  std::atomic<std::uint32_t> n_arrived = 0;
  group.run([&](ChannelCommunicator& communicator) {
    for (std::uint32_t i = 1; i <= 50; ++i) {
      ++n_arrived;
      ASSERT_TRUE(communicator.barrier().ok());
      EXPECT_GE(n_arrived, i * communicator.n_ranks());
    }
  });
}

// Vectors that go from registered memory without a copy, and are overwritten once the card is done.
TEST_P(Collective, SumsInRegisteredMemory) {
  TestGroupOptions with_memory = options();
  constexpr std::size_t kValues = 40'000;
  with_memory.caller_bytes = kValues * sizeof(float);
  TestGroup group(with_memory);
  group.run([&](ChannelCommunicator& communicator) {
    const std::span<float> values(reinterpret_cast<float*>(communicator.registered_memory().data()),
                                  kValues);
    const std::vector<float> expected = serial_sum(3, communicator.n_ranks(), kValues);
    for (const std::size_t one_shot_max : {kAlways, std::size_t{0}, kAlways}) {
      communicator.set_one_shot_values_max(one_shot_max);
      std::ranges::copy(test_values(3, communicator.rank(), kValues), values.begin());
      const Result<void> reduced = communicator.all_reduce(values);
      ASSERT_TRUE(reduced.ok()) << reduced.error().message;
      EXPECT_TRUE(same_bits(values, expected));
      for (std::uint32_t r = 0; r < communicator.n_ranks(); ++r) {
        if (r == communicator.rank()) continue;
        EXPECT_EQ(communicator.channels(r).sender->counters().payload_copies, 0U);
      }
    }
  });
}

class CollectiveMix : public testing::TestWithParam<std::tuple<Links, std::uint32_t, bool>> {};

INSTANTIATE_TEST_SUITE_P(Groups, CollectiveMix,
                         testing::Combine(testing::Values(Links::kTcp, Links::kTcpApart,
                                                          Links::kSharedMemory, Links::kRdma),
                                          testing::Values(2U, 3U, 5U), testing::Bool()),
                         [](const auto& test) {
                           return fmt::format("{}_{}_{}", to_string(std::get<0>(test.param)),
                                              std::get<1>(test.param),
                                              std::get<2>(test.param) ? "spins" : "sleeps");
                         });

// Calls of all kinds, one right after the other: who is ahead must not disturb who is behind, and
// who sleeps is woken.
TEST_P(CollectiveMix, CallsFollowEachOther) {
  const auto [links, n, spins] = GetParam();
  TestGroupOptions options{.n_ranks = n, .links = links};
  if (!spins) options.communicator.spin = net::Duration::zero();
  TestGroup group(options);
  group.run([&](ChannelCommunicator& communicator) {
    Rng rng(4);  // The same calls on all ranks.
    const std::uint32_t n_ranks = communicator.n_ranks();
    for (std::uint64_t i = 0; i < 150; ++i) {
      const std::size_t n_values = rng.below(4) == 0 ? 4000 : rng.below(200);
      std::vector<float> values = test_values(i, communicator.rank(), n_values);
      const std::uint64_t kind = rng.below(4);
      const auto root = static_cast<std::uint32_t>(rng.below(n_ranks));
      communicator.set_one_shot_values_max(rng.below(2) * 1000);
      if (kind == 0) {
        ASSERT_TRUE(communicator.broadcast(values, root).ok());
        ASSERT_TRUE(same_bits(values, test_values(i, root, n_values)));
      } else if (kind == 1) {
        ASSERT_TRUE(communicator.barrier().ok());
      } else {
        ASSERT_TRUE(communicator.all_reduce(values).ok());
        ASSERT_TRUE(same_bits(values, serial_sum(i, n_ranks, n_values)));
      }
    }
  });
}

}  // namespace
}  // namespace recua::collective
