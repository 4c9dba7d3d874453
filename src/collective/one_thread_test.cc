// Ranks in one thread, on a virtual clock and a simulated network: step by step, in any order.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "collective/channel_communicator.h"
#include "collective/test_group.h"
#include "net/sim/sim_network.h"
#include "rpc/delayed_receiver.h"
#include "rpc/tcp_channel.h"

namespace recua::collective {
namespace {

using testing::HasSubstr;

/// Sleeping lets virtual time pass.
class SimWaiter final : public Waiter {
 public:
  explicit SimWaiter(net::SimLoop& loop) : loop_(loop) {}
  void sleep_until(net::TimePoint when) override {
    if (loop_.run_one_or_advance() || loop_.now() >= when) return;
    loop_.run_for(when - loop_.now());
  }
  void wake() override {}

 private:
  net::SimLoop& loop_;
};

struct SimGroup {
  SimGroup(std::uint32_t n_ranks, std::uint64_t seed, rpc::RingShape ring, net::Duration delay = {})
      : network(loop, {.seed = seed}) {
    std::vector<std::vector<PeerChannels>> channels(n_ranks);
    std::vector<SendRing> rings;
    for (std::uint32_t r = 0; r < n_ranks; ++r) {
      channels[r].resize(n_ranks);
      rings.push_back(*SendRing::create(ring, n_ranks, 0));
    }
    for (std::uint32_t to = 0; to < n_ranks; ++to) {
      const net::Env env = network.env(name(to));
      auto listener = *env.network->listen(net::Endpoint{"", 7500});
      for (std::uint32_t from = 0; from < n_ranks; ++from) {
        if (from == to) continue;
        auto client = *loop.run(
            network.env(name(from))
                .network->connect(net::Endpoint{name(to), 7500}, std::chrono::seconds(5)));
        auto server = *loop.run(listener->accept());
        memory.emplace_back(*sys::AlignedBuffer::allocate(ring.n_slots * ring.slot_bytes));
        channels[from][to].sender = rpc::make_tcp_sender(std::move(client), ring);
        channels[to][from].receiver =
            *rpc::make_tcp_receiver(std::move(server), TestGroup::kId, ring, memory.back().bytes());
        if (delay > net::Duration::zero()) {
          channels[to][from].receiver =
              rpc::make_delayed_receiver(std::move(channels[to][from].receiver), env, delay);
        }
      }
    }
    for (std::uint32_t r = 0; r < n_ranks; ++r) {
      ranks.push_back(*ChannelCommunicator::create(
          {.id = TestGroup::kId,
           .rank = r,
           .ring = std::move(rings[r]),
           .channels = std::move(channels[r]),
           .clock = &loop,
           .waiter = &waiter,
           .options = {.timeout = std::chrono::seconds(7), .spin = net::Duration::zero()}}));
    }
  }
  static std::string name(std::uint32_t rank) { return "host" + std::to_string(rank); }

  net::SimLoop loop;
  net::SimNetwork network;
  SimWaiter waiter{loop};
  std::vector<sys::AlignedBuffer> memory;
  std::vector<std::unique_ptr<ChannelCommunicator>> ranks;
};

TEST(CollectiveInOneThread, SumsTheSameBitsWhateverTheTimingAndTheWay) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    const auto n_ranks = static_cast<std::uint32_t>(2 + rng.below(4));
    const std::size_t n = rng.below(3) == 0 ? rng.below(40) : rng.below(3000);
    const bool one_shot = rng.below(2) == 0;
    SCOPED_TRACE(fmt::format("seed {}, {} ranks, {} values", seed, n_ranks, n));
    SimGroup group(n_ranks, seed,
                   {.n_slots = static_cast<std::uint32_t>(2 + rng.below(3)), .slot_bytes = 1024});
    std::vector<std::vector<float>> values(n_ranks);
    std::vector<std::uint64_t> n_started(n_ranks);
    std::vector<std::uint64_t> n_done(n_ranks);
    constexpr std::uint64_t kCalls = 4;  // Some ranks may be a call ahead.
    for (std::uint64_t i = 0; std::ranges::min(n_done) < kCalls; ++i) {
      ASSERT_LT(i, 200'000U) << "stuck";
      const auto r = static_cast<std::uint32_t>(rng.below(n_ranks));
      ChannelCommunicator& communicator = *group.ranks[r];
      if (n_started[r] == n_done[r] && n_done[r] < kCalls) {
        values[r] = test_values(seed + n_started[r]++, r, n);
        communicator.set_one_shot_values_max(one_shot ? n : 0);
        ASSERT_TRUE(communicator.start_all_reduce(values[r]).ok());
      }
      const auto progress = communicator.poll();
      ASSERT_TRUE(progress.ok()) << progress.error().message;
      if (*progress == ChannelCommunicator::Progress::kDone && n_done[r] < n_started[r]) {
        EXPECT_EQ(values[r], serial_sum(seed + n_done[r]++, n_ranks, n));
      }
      if (*progress == ChannelCommunicator::Progress::kNothing) group.loop.run_one_or_advance();
    }
  }
}

TEST(CollectiveInOneThread, TimesOutInVirtualTimeNamingWhoIsMissing) {
  SimGroup group(3, 1, {.n_slots = 4, .slot_bytes = 1024});
  std::vector<float> values(10);
  const net::TimePoint start = group.loop.now();
  const Result<void> out = group.ranks[0]->all_reduce(values);
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(
      out.error().message,
      HasSubstr("all_reduce of 10 values (call 0, one-shot): nothing from rank 1 (host1:7500)"));
  EXPECT_THAT(out.error().message, HasSubstr("nothing from rank 2 (host2:7500) within 7 s"));
  EXPECT_GE(group.loop.now() - start, std::chrono::seconds(7));
}

TEST(CollectiveInOneThread, HearsOfACutConnection) {
  SimGroup group(3, 1, {.n_slots = 4, .slot_bytes = 1024});
  group.network.kill("host2");
  std::vector<float> values(10);
  const Result<void> out = group.ranks[0]->all_reduce(values);
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(out.error().message, HasSubstr("rank 2 (host2:7500)"));
}

TEST(DelayedReceiver, HoldsEachMessageForItsTimeAndWakesWhoSleeps) {
  constexpr net::Duration kDelay = std::chrono::milliseconds(50);
  SimGroup group(2, 1, {.n_slots = 4, .slot_bytes = 1024}, kDelay);
  std::vector<float> mine(10, 1.0F);
  std::vector<float> other(10, 2.0F);
  const net::TimePoint start = group.loop.now();
  ASSERT_TRUE(group.ranks[1]->start_all_reduce(other).ok());
  ASSERT_TRUE(group.ranks[1]->poll().ok());
  ASSERT_TRUE(group.ranks[1]->poll().ok());
  ASSERT_TRUE(group.ranks[0]->all_reduce(mine).ok());  // Sleeps until its time.
  EXPECT_EQ(mine[9], 3.0F);
  EXPECT_GE(group.loop.now() - start, kDelay);
  EXPECT_LE(group.loop.now() - start, kDelay + std::chrono::milliseconds(2));
}

TEST(DelayedReceiver, TellsOfTheEndAfterWhatCameBefore) {
  net::SimLoop loop;
  net::SimNetwork network(loop, {});
  const net::Env a = network.env("a");
  const net::Env b = network.env("b");
  auto listener = *b.network->listen(net::Endpoint{"", 7500});
  auto client = *loop.run(a.network->connect(net::Endpoint{"b", 7500}, std::chrono::seconds(5)));
  auto server = *loop.run(listener->accept());
  const rpc::RingShape ring{.n_slots = 4, .slot_bytes = 1024};
  std::vector<std::byte> memory(ring.n_slots * ring.slot_bytes);
  auto sender = rpc::make_tcp_sender(std::move(client), ring);
  auto receiver = rpc::make_delayed_receiver(
      *rpc::make_tcp_receiver(std::move(server), TestGroup::kId, ring, memory), b,
      std::chrono::milliseconds(50));
  EXPECT_EQ(receiver->transport(), "tcp, delayed by 50 ms");
  const rpc::TensorHeader header{.session = TestGroup::kId.session, .epoch = TestGroup::kId.epoch};
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(*sender->try_send({.header = header, .rows = {}, .descriptor = {}}));
  }
  loop.run_for(std::chrono::milliseconds(1));
  EXPECT_EQ(*receiver->poll(), nullptr);
  sender.reset();
  loop.run_for(std::chrono::milliseconds(10));
  EXPECT_EQ(*receiver->poll(), nullptr);
  bool woken = false;
  receiver->arm([&] { woken = true; });
  EXPECT_TRUE(loop.run_until([&] { return woken; }));
  for (int i = 0; i < 2; ++i) {
    const auto in = receiver->poll();
    ASSERT_TRUE(in.ok() && *in) << i;
    EXPECT_TRUE(receiver->release((*in)->slot).ok());
  }
  loop.run_for(std::chrono::milliseconds(60));
  const auto end = receiver->poll();
  ASSERT_FALSE(end.ok());
  EXPECT_EQ(end.error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace recua::collective
