// Ranks that die, stay away or make another call: everybody else gets an error that says so.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "collective/test_group.h"

namespace recua::collective {
namespace {

using testing::HasSubstr;

class CollectiveFailure : public testing::TestWithParam<Links> {
 protected:
  static TestGroupOptions options(std::uint32_t n_ranks, net::Duration timeout) {
    return {.n_ranks = n_ranks, .links = GetParam(), .communicator = {.timeout = timeout}};
  }
  /// What each rank's last call returned.
  std::vector<Result<void>> outcomes(
      TestGroup& group, const std::function<Result<void>(ChannelCommunicator&)>& work) {
    std::vector<Result<void>> out(group.ranks.size());
    group.run([&](ChannelCommunicator& communicator) {
      Result<void>& outcome = out[communicator.rank()];  // The work may end the communicator.
      outcome = work(communicator);
    });
    return out;
  }
};

constexpr net::Duration kLong = std::chrono::seconds(30);
constexpr net::Duration kShort = std::chrono::milliseconds(200);

INSTANTIATE_TEST_SUITE_P(Links, CollectiveFailure,
                         testing::Values(Links::kTcp, Links::kTcpApart, Links::kSharedMemory,
                                         Links::kRdma),
                         [](const auto& test) { return to_string(test.param); });

TEST_P(CollectiveFailure, NamesTheRankThatDied) {
  for (const std::size_t one_shot_max : {std::size_t{1} << 30, std::size_t{0}}) {
    TestGroup group(options(4, kLong));
    const auto outcome = outcomes(group, [&](ChannelCommunicator& communicator) -> Result<void> {
      communicator.set_one_shot_values_max(one_shot_max);
      const std::uint32_t rank = communicator.rank();
      std::vector<float> values(3000, 1.0F);
      for (int i = 0; i < 100; ++i) {
        if (rank == 2 && i == 5) {
          group.ranks[2]->communicator.reset();
          return ok();
        }
        if (Result<void> reduced = communicator.all_reduce(values); !reduced.ok()) {
          const Result<void> again = communicator.barrier();
          EXPECT_EQ(again.error().message, reduced.error().message);  // It stays so.
          return reduced;
        }
      }
      return ok();
    });
    for (const std::uint32_t rank : {0U, 1U, 3U}) {
      ASSERT_FALSE(outcome[rank].ok()) << "rank " << rank;
      EXPECT_EQ(outcome[rank].error().code, ErrorCode::kUnavailable);
      EXPECT_THAT(outcome[rank].error().message, HasSubstr("rank 2 ("));
      EXPECT_THAT(outcome[rank].error().message, HasSubstr("all_reduce of 3000 values (call "));
    }
  }
}

TEST_P(CollectiveFailure, NamesTheRankThatStaysAway) {
  TestGroup group(options(3, kShort));
  const auto outcome = outcomes(group, [](ChannelCommunicator& communicator) -> Result<void> {
    std::vector<float> values(10, 1.0F);
    RECUA_RETURN_IF_ERROR(communicator.all_reduce(values));
    if (communicator.rank() == 1) return ok();
    return communicator.all_reduce(values);
  });
  EXPECT_TRUE(outcome[1].ok());
  for (const std::uint32_t rank : {0U, 2U}) {
    ASSERT_FALSE(outcome[rank].ok()) << "rank " << rank;
    EXPECT_EQ(outcome[rank].error().code, ErrorCode::kTimeout);
    EXPECT_THAT(outcome[rank].error().message, HasSubstr("nothing from rank 1 ("));
    EXPECT_THAT(outcome[rank].error().message, HasSubstr("within 200 ms"));
  }
  // The one that was away finds what they sent, and then hears why nothing else comes.
  std::vector<float> values(10, 1.0F);
  EXPECT_TRUE(group.ranks[1]->communicator->all_reduce(values).ok());
  const Result<void> late = group.ranks[1]->communicator->barrier();
  ASSERT_FALSE(late.ok());
  EXPECT_THAT(late.error().message, HasSubstr("gave up: "));
  EXPECT_THAT(late.error().message, HasSubstr("nothing from rank 1 ("));
}

TEST_P(CollectiveFailure, NamesBothSizesWhenTheyDiffer) {
  TestGroup group(options(3, kLong));
  const auto outcome = outcomes(group, [](ChannelCommunicator& communicator) -> Result<void> {
    std::vector<float> values(communicator.rank() == 1 ? 200 : 100, 1.0F);
    return communicator.all_reduce(values);
  });
  for (const Result<void>& result : outcome) {
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kProtocol);
    EXPECT_THAT(result.error().message, HasSubstr("rank 1"));
    EXPECT_THAT(result.error().message, HasSubstr("all_reduce of 100 values"));
    EXPECT_THAT(result.error().message, HasSubstr("all_reduce of 200 values"));
    EXPECT_THAT(result.error().message, HasSubstr("the same calls"));
  }
}

TEST_P(CollectiveFailure, NamesBothCallsWhenTheyDiffer) {
  const auto both =
      [&](const std::function<Result<void>(ChannelCommunicator&, std::uint32_t)>& call) {
        TestGroup group(options(2, kLong));
        const auto outcome =
            outcomes(group, [&](ChannelCommunicator& communicator) -> Result<void> {
              return call(communicator, communicator.rank());
            });
        std::string out;
        for (const Result<void>& result : outcome) {
          EXPECT_FALSE(result.ok());
          if (result.ok()) continue;
          EXPECT_EQ(result.error().code, ErrorCode::kProtocol) << result.error().message;
          out += result.error().message + "\n";
        }
        return out;
      };
  std::vector<float> two_vectors[2] = {std::vector<float>(64), std::vector<float>(64)};
  const auto values = [&](std::uint32_t rank) { return std::span(two_vectors[rank]); };

  std::string said = both([&](ChannelCommunicator& communicator, std::uint32_t rank) {
    return rank == 0 ? communicator.barrier() : communicator.all_reduce(values(rank));
  });
  EXPECT_THAT(said, HasSubstr("makes barrier (call 0)"));
  EXPECT_THAT(said, HasSubstr("makes all_reduce of 64 values (call 0, one-shot)"));

  said = both([&](ChannelCommunicator& communicator, std::uint32_t rank) {
    communicator.set_one_shot_values_max(rank * 1000);
    return communicator.all_reduce(values(rank));
  });
  EXPECT_THAT(said, HasSubstr("one-shot"));
  EXPECT_THAT(said, HasSubstr("scattering"));

  said = both([&](ChannelCommunicator& communicator, std::uint32_t rank) {
    const std::size_t counts[2] = {20 + rank, 44 - rank};
    return communicator.all_gather(values(rank).first(counts[rank]), counts, values(rank));
  });
  EXPECT_THAT(said, HasSubstr("values for this rank"));
}

TEST_P(CollectiveFailure, EndsACallThatIsCancelled) {
  TestGroup group(options(2, kLong));
  const auto outcome = outcomes(group, [&](ChannelCommunicator& communicator) -> Result<void> {
    if (communicator.rank() == 1) {
      group.ranks[0]->communicator->cancel();
      return ok();
    }
    return communicator.barrier();
  });
  ASSERT_FALSE(outcome[0].ok());
  EXPECT_EQ(outcome[0].error().code, ErrorCode::kCancelled);
}

TEST(CollectiveRings, MustDoForCollectiveCalls) {
  for (const rpc::RingShape ring : {rpc::RingShape{.n_slots = 1, .slot_bytes = 4096},
                                    rpc::RingShape{.n_slots = 4, .slot_bytes = 192},
                                    rpc::RingShape{.n_slots = 4, .slot_bytes = 4000}}) {
    EXPECT_EQ(check_ring(ring).error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_TRUE(check_ring({.n_slots = 2, .slot_bytes = 256}).ok());
}

}  // namespace
}  // namespace recua::collective
