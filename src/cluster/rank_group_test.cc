// Ranks put both links between two of them on one connection where both know that, and only there.
#include "cluster/rank_group.h"

#include <array>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "net/real_clock.h"
#include "net/recording_connection.h"
#include "net/tcp/tcp_pair.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;
using Features = std::vector<std::uint32_t>;

const auto kShared = static_cast<std::uint32_t>(rpc::Feature::kSharedConnection);

/// Two ranks that sum a few times; what rank 0 read and wrote on the connection that each opened.
class TwoRanks {
 public:
  /// features: that the ends of the connection from rank 0 to rank 1 agreed on, and from 1 to 0.
  explicit TwoRanks(const std::array<Features, 2>& features) {
    for (std::uint32_t from = 0; from < 2; ++from) {
      auto [opener, other] = net::connect_over_loopback(loops_[0], network_);
      opened_to_[from] = opener->peer();
      std::array<std::unique_ptr<net::Connection>, 2> ends;  // Of rank 0, of rank 1.
      ends[from] = std::move(opener);
      ends[1 - from] = std::move(other);
      ends[0] = net::record(std::move(ends[0]), transcripts_[from]);
      const GroupChannel channel{.from = from, .to = 1 - from};
      for (std::uint32_t rank = 0; rank < 2; ++rank) {
        const Result<void> attached =
            groups_[rank].attach(channel, {.connection = std::move(ends[rank]),
                                           .number = group_channel_number(channel),
                                           .name = "rank " + std::to_string(1 - rank),
                                           .ring = kGroupRing,
                                           .features = features[from]});
        RECUA_CHECK(attached.ok());
      }
    }
  }

  void sum() {
    std::vector<std::jthread> threads;
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      threads.emplace_back([this, rank] { sum_as(rank); });
    }
  }
  [[nodiscard]] std::size_t bytes(std::uint32_t opener) const {
    return transcripts_[opener]->sent.size() + transcripts_[opener]->received.size();
  }

  /// Where a rank found the other when it opened its connection, and what its messages call it.
  [[nodiscard]] const std::string& opened_to(std::uint32_t rank) const { return opened_to_[rank]; }
  [[nodiscard]] const std::string& called(std::uint32_t rank) const { return called_[rank]; }

 private:
  void sum_as(std::uint32_t rank) {
    asio::io_context& loop = loops_[rank];
    RankGroup& group = groups_[rank];
    const net::Env env{
        .executor = loop.get_executor(), .clock = &clock_, .network = &network_, .random = {}};
    const auto context = [&](const ChannelEnd&, bool) {
      return rpc::LinkContext{.env = env, .policy = nullptr};
    };
    const Result<void> connected = group.connect({.session = 1, .epoch = 1}, env, nullptr, context,
                                                 std::make_unique<collective::LoopWaiter>(loop));
    ASSERT_TRUE(connected.ok()) << connected.error().message;
    called_[rank] = group.channels()->channels(1 - rank).sender->peer();
    for (int i = 0; i < 50; ++i) {  // More than there are slots.
      std::vector<float> values(1000, static_cast<float>(rank + 1));
      const Result<void> summed = group.all_reduce(values);
      ASSERT_TRUE(summed.ok()) << summed.error().message;
      ASSERT_EQ(values, std::vector<float>(1000, 3.0F));
    }
    group.disconnect();
  }

  net::RealClock clock_;
  std::array<asio::io_context, 2> loops_{asio::io_context(1), asio::io_context(1)};
  net::TcpNetwork network_{loops_[0].get_executor()};
  std::array<std::shared_ptr<net::Transcript>, 2> transcripts_{std::make_shared<net::Transcript>(),
                                                               std::make_shared<net::Transcript>()};
  std::array<std::string, 2> opened_to_;
  std::array<std::string, 2> called_;
  std::array<RankGroup, 2> groups_{RankGroup(0, 2), RankGroup(1, 2)};
};

constexpr std::size_t kSummandBytes = 50 * 1000 * sizeof(float);

TEST(RankGroup, HasOneConnectionPerPeerWhereBothKnowThat) {
  TwoRanks ranks({Features{1, kShared}, Features{1, kShared}});
  ranks.sum();
  EXPECT_GT(ranks.bytes(0), 2 * kSummandBytes);  // The lower rank's carries both ways.
  EXPECT_EQ(ranks.bytes(1), 0U);
  for (const std::uint32_t rank : {0U, 1U}) EXPECT_EQ(ranks.called(rank), ranks.opened_to(rank));
}

TEST(RankGroup, HasTwoWithAnOlderRank) {
  for (const auto& features :
       {std::array{Features{1}, Features{1}}, std::array{Features{1, kShared}, Features{1}}}) {
    TwoRanks ranks(features);
    ranks.sum();
    for (const std::uint32_t opener : {0U, 1U}) {
      EXPECT_GT(ranks.bytes(opener), kSummandBytes);
      EXPECT_LT(ranks.bytes(opener), 2 * kSummandBytes);
    }
  }
}

}  // namespace
}  // namespace recua::cluster
