#include "net/verbs/lane.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "net/verbs/lane_test_peer.h"

namespace recua::net::verbs {
namespace {

using Part = std::span<const std::byte>;

void fill(std::span<std::byte> out, Rng& rng) {
  for (std::byte& b : out) b = static_cast<std::byte>(rng.next());
}

TEST_F(LaneTest, WritesIntoTheWindowAndAnnounces) {
  connect();
  std::fill(a_.source.begin(), a_.source.end(), std::byte{7});
  ASSERT_TRUE(a_.writes(100, 8192, 42));
  std::vector<Announcement> got;
  EXPECT_TRUE(b_.lane->poll(got));
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].value, 42U);
  EXPECT_TRUE(got[0].has_bytes);
  EXPECT_EQ(got[0].bytes, 8192U);
  EXPECT_EQ(b_.window[99], std::byte{0});
  EXPECT_EQ(b_.window[100], std::byte{7});
  EXPECT_EQ(b_.window[8291], std::byte{7});
  EXPECT_EQ(b_.window[8292], std::byte{0});
  EXPECT_FALSE(b_.lane->poll(got));
  EXPECT_EQ(a_.lane->n_written(), 1U);
  EXPECT_EQ(a_.lane->n_completed(), 0U);
  EXPECT_TRUE(a_.lane->poll(got));
  EXPECT_EQ(a_.lane->n_completed(), 1U);
  EXPECT_FALSE(a_.lane->poll(got));
}

TEST_F(LaneTest, WritesBothWays) {
  connect();
  ASSERT_TRUE(a_.writes(0, 64, 1));
  ASSERT_TRUE(b_.writes(0, 64, 2));
  EXPECT_EQ(a_.poll(), Values{2});
  EXPECT_EQ(b_.poll(), Values{1});
}

TEST_F(LaneTest, WritesWithoutAnnouncement) {
  connect();
  a_.source[5] = std::byte{9};
  ASSERT_TRUE(a_.writes(0, 64, std::nullopt));
  EXPECT_EQ(b_.window[5], std::byte{9});
  EXPECT_EQ(b_.poll(), Values{});
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 1U);
}

TEST_F(LaneTest, AnnouncesWithoutBytes) {
  connect();
  ASSERT_TRUE(*a_.lane->write({.offset = 0, .parts = {}, .announce = 3, .signal = false}));
  EXPECT_EQ(b_.poll(), Values{3});
  ASSERT_TRUE(
      *a_.lane->write({.offset = b_.window.size(), .parts = {}, .announce = 4, .signal = false}));
  EXPECT_EQ(b_.poll(), Values{4});
  ASSERT_TRUE(*a_.lane->write({.offset = 0, .parts = {}, .announce = {}, .signal = false}));
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 3U);
  EXPECT_EQ(a_.failure(), "");
}

// ---- What a write becomes -----------------------------------------------------------------------

TEST_F(LaneTest, PostsHeaderAndRowsAsOneGatheredRequest) {
  connect();
  const std::array<Part, 3> parts = {Part(a_.source).first(64), Part(a_.source).subspan(1024, 8192),
                                     Part(a_.source).subspan(128, 16)};
  ASSERT_TRUE(*a_.lane->write({.offset = 0, .parts = parts, .announce = 1, .signal = false}));
  EXPECT_EQ(a_.lane->counters().posts, 1U);
  EXPECT_EQ(a_.lane->counters().requests, 1U);
}

TEST_F(LaneTest, ChainsAnUnregisteredHeaderInlineBeforeTheRows) {
  connect();
  fabric_.hold(true);
  std::vector<std::byte> header(64, std::byte{1});
  const std::array<Part, 2> parts = {Part(header), Part(a_.source).first(8192)};
  bool was_inline = true;
  ASSERT_TRUE(
      *a_.lane->write({.offset = 0, .parts = parts, .announce = 1, .signal = false}, &was_inline));
  EXPECT_FALSE(was_inline);
  EXPECT_EQ(a_.lane->counters().posts, 1U);
  EXPECT_EQ(a_.lane->counters().requests, 2U);
  std::fill(header.begin(), header.end(), std::byte{2});  // It was taken with the post.
  fabric_.hold(false);
  EXPECT_EQ(b_.poll(), Values{1});
  EXPECT_EQ(b_.window[63], std::byte{1});
}

TEST_F(LaneTest, TakesShortWritesInline) {
  connect();
  const std::uint32_t most = a_.lane->inline_bytes_max();
  ASSERT_EQ(most, 128U);  // 256 wished, 220 possible.
  fabric_.hold(true);
  std::vector<std::byte> loose(most, std::byte{1});
  const std::array<Part, 2> parts = {Part(loose).first(28), Part(loose).subspan(28)};
  bool was_inline = false;
  ASSERT_TRUE(
      *a_.lane->write({.offset = 0, .parts = parts, .announce = 1, .signal = false}, &was_inline));
  EXPECT_TRUE(was_inline);
  std::fill(loose.begin(), loose.end(), std::byte{2});
  ASSERT_TRUE(a_.writes(1000, most + 1, 2));  // Too long, so read when its turn comes.
  a_.source[1000] = std::byte{3};
  fabric_.hold(false);
  EXPECT_EQ(b_.poll(), (Values{1, 2}));
  EXPECT_EQ(b_.window[0], std::byte{1});
  EXPECT_EQ(b_.window[most - 1], std::byte{1});
  EXPECT_EQ(b_.window[1000], std::byte{3});
}

TEST_F(LaneTest, SendsAnnouncementsWhereThereAreNoImmediates) {
  FakeLimits limits;
  limits.immediates = false;
  fabric_.set_limits("fa", limits);
  fabric_.set_limits("fb", limits);
  connect({.use_immediate = false});
  std::fill(a_.source.begin(), a_.source.end(), std::byte{7});
  ASSERT_TRUE(a_.writes(0, 8192, 0x89abcdef));
  EXPECT_EQ(a_.lane->counters().posts, 1U);
  EXPECT_EQ(a_.lane->counters().requests, 2U);
  std::vector<Announcement> got;
  b_.lane->poll(got);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].value, 0x89abcdefU);
  EXPECT_FALSE(got[0].has_bytes);
  EXPECT_EQ(b_.window[8191], std::byte{7});
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 1U);
}

// A device of any abilities, and writes of any shape: the window always ends up with the same
// bytes, announcements come in order, and the source is free when it is said to be.
class LaneShapeTest : public LaneTest,
                      public ::testing::WithParamInterface<std::tuple<int, int, int, bool>> {
 protected:
  LaneShapeTest() : LaneTest(limits()) {}
  static FakeLimits limits() {
    FakeLimits out;
    out.sge_max = static_cast<std::uint32_t>(std::get<0>(GetParam()));
    out.inline_bytes_max = static_cast<std::uint32_t>(std::get<1>(GetParam()));
    out.message_bytes_max = static_cast<std::uint64_t>(std::get<2>(GetParam()));
    return out;
  }
};

TEST_P(LaneShapeTest, WritesAnySplitOfBytes) {
  connect({.send_depth = 64,
           .receive_depth = 4,
           .inline_bytes = 256,
           .signal_every = 3,
           .use_immediate = std::get<3>(GetParam())});
  Rng rng(7);
  std::vector<std::byte> expected(b_.window.size());
  std::vector<std::byte> loose(64);
  std::uint64_t n_posts = 0;
  for (std::uint32_t i = 0; i < 300; ++i) {
    SCOPED_TRACE(i);
    fill(std::span(a_.source).first(4096), rng);
    fill(loose, rng);
    std::vector<Part> parts;
    std::size_t bytes = 0;
    const std::size_t loose_bytes = std::min<std::size_t>(a_.lane->inline_bytes_max(), 64);
    if (rng.below(3) == 0) parts.push_back(Part(loose).first(rng.below(loose_bytes + 1)));
    for (std::size_t n = rng.below(4); n > 0; --n) {
      const std::size_t begin = rng.below(4096);
      const std::size_t length = rng.below(2) == 0 ? rng.below(40) : rng.below(4096 - begin);
      parts.push_back(Part(a_.source).subspan(begin, std::min(length, 4096 - begin)));
    }
    for (const Part part : parts) bytes += part.size();
    const std::size_t offset = rng.below(expected.size() - bytes + 1);
    auto out = expected.begin() + static_cast<std::ptrdiff_t>(offset);
    for (const Part part : parts) out = std::copy(part.begin(), part.end(), out);

    const auto written =
        a_.lane->write({.offset = offset, .parts = parts, .announce = i, .signal = false});
    ASSERT_TRUE(written.ok()) << written.error().message;
    ASSERT_TRUE(*written);
    EXPECT_EQ(a_.lane->counters().posts, ++n_posts);
    EXPECT_EQ(b_.poll(), Values{i});
    ASSERT_EQ(b_.window, expected);
    a_.poll();
    EXPECT_GE(a_.lane->n_completed() + 2, a_.lane->n_written());
  }
  EXPECT_EQ(a_.failure(), "");
  EXPECT_EQ(b_.failure(), "");
}

INSTANTIATE_TEST_SUITE_P(Devices, LaneShapeTest,
                         ::testing::Combine(::testing::Values(1, 2, 30),       // Segments
                                            ::testing::Values(0, 3, 16, 220),  // Inline bytes
                                            ::testing::Values(700, 1 << 20),   // Message bytes
                                            ::testing::Bool()));               // Immediates

TEST_F(LaneTest, AnnouncesALongWriteWithItsLastPiece) {
  FakeLimits limits;
  limits.message_bytes_max = 1000;
  fabric_.set_limits("fa", limits);
  connect();
  fabric_.hold(true);
  ASSERT_TRUE(a_.writes(0, 3500, 5));
  EXPECT_EQ(a_.lane->counters().posts, 1U);
  EXPECT_EQ(a_.lane->counters().requests, 4U);
  EXPECT_EQ(a_.lane->counters().signals, 1U);
  EXPECT_EQ(fabric_.release(3), 3U);
  EXPECT_EQ(b_.poll(), Values{});
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 0U);
  fabric_.hold(false);
  std::vector<Announcement> got;
  b_.lane->poll(got);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].bytes, 500U);
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 1U);
}

TEST_F(LaneTest, RefusesWritesThatItCannotMake) {
  FakeLimits limits;
  limits.message_bytes_max = 1000;
  fabric_.set_limits("fa", limits);
  connect({.send_depth = 16});
  const auto refusal = [&](std::uint64_t offset, std::span<const Part> parts) {
    const auto written =
        a_.lane->write({.offset = offset, .parts = parts, .announce = 1, .signal = false});
    if (written.ok()) return std::string("taken");
    EXPECT_EQ(written.error().code, ErrorCode::kInvalidArgument);
    return written.error().message;
  };
  const Part source(a_.source);
  const std::vector<std::byte> loose(1000);
  const auto one = [](const Part& part) { return std::span<const Part>(&part, 1); };
  EXPECT_EQ(
      refusal(65536, one(source.first(1))),
      "rdma fa/1 -> 10.0.0.2: a write of 1 bytes in 1 parts at 65536 is outside of the window "
      "of 65536 bytes or has more than 4 parts");
  EXPECT_NE(refusal(65530, one(source.first(7))), "taken");
  EXPECT_NE(refusal(UINT64_MAX, one(source.first(2))), "taken");
  EXPECT_EQ(refusal(0, one(Part(loose))),
            "rdma fa/1 -> 10.0.0.2: a part of 1000 bytes lies in no registered memory, and only "
            "128 fit into a request");
  const Part past_the_end(a_.source.data() + a_.source.size() - 1, 400);
  EXPECT_NE(refusal(0, one(past_the_end)), "taken");
  const std::vector<Part> five(5, source.first(1));
  EXPECT_NE(refusal(0, five), "taken");
  EXPECT_EQ(refusal(0, one(source.first(7001))),
            "rdma fa/1 -> 10.0.0.2: a write takes more than 7 requests at 1000 bytes each: half of "
            "the queue's depth but one for the announcement");
  EXPECT_EQ(a_.lane->counters().posts, 0U);
  EXPECT_EQ(refusal(0, one(source.first(7000))), "taken");
  EXPECT_EQ(refusal(65530, one(source.first(6))), "taken");
  EXPECT_EQ(b_.poll(), (Values{1, 1}));
}

// ---- Many writes --------------------------------------------------------------------------------

TEST_F(LaneTest, KeepsOrderOverAWindowOfManyWrites) {
  connect({.send_depth = 64, .receive_depth = 40});
  Rng rng(3);
  std::uint32_t n_sent = 0;
  std::uint32_t n_received = 0;
  std::vector<Announcement> got;
  while (n_received < 5000) {
    ASSERT_EQ(a_.failure(), "");
    while (n_sent - n_received < 40 && rng.below(8) != 0)
      if (a_.writes(rng.below(1000), 1 + rng.below(500), n_sent)) ++n_sent;
    got.clear();
    b_.lane->poll(got);
    for (const Announcement& announcement : got) ASSERT_EQ(announcement.value, n_received++);
    if (rng.below(4) == 0) a_.poll();
  }
}

TEST_F(LaneTest, SignalsOneInKAndWhenAsked) {
  connect({.send_depth = 64, .signal_every = 4});
  for (std::uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(a_.writes(0, 500, {}));
  EXPECT_EQ(a_.lane->counters().signals, 0U);
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 0U);
  ASSERT_TRUE(a_.writes(0, 500, {}));
  EXPECT_EQ(a_.lane->counters().signals, 1U);
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 4U);
  ASSERT_TRUE(a_.writes(0, 500, {}));
  ASSERT_TRUE(a_.writes(0, 500, {}, true));
  EXPECT_EQ(a_.lane->counters().signals, 2U);
  a_.poll();
  EXPECT_EQ(a_.lane->n_completed(), 6U);
  EXPECT_EQ(a_.lane->counters().completions, 2U);
}

TEST_F(LaneTest, SaysNoWhenTheQueueIsFull) {
  connect({.send_depth = 16});
  fabric_.hold(true);
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(a_.writes(0, 500, {})) << i;
  EXPECT_FALSE(a_.writes(0, 500, {}));
  a_.poll();
  EXPECT_FALSE(a_.writes(0, 500, {}));
  EXPECT_EQ(a_.lane->n_written(), 16U);
  fabric_.release(3);
  EXPECT_FALSE(a_.writes(0, 500, {}));  // Not before their completions are taken.
  a_.poll();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(a_.writes(0, 500, {})) << i;
  EXPECT_FALSE(a_.writes(0, 500, {}));
}

TEST_F(LaneTest, NeverFillsItsQueueWithUnsignaledRequests) {
  FakeLimits limits;
  limits.message_bytes_max = 1000;
  fabric_.set_limits("fa", limits);
  connect({.send_depth = 17, .signal_every = 1'000'000});
  Rng rng(5);
  for (int i = 0; i < 2000; ++i) {
    const std::size_t bytes = 200 + rng.below(6801);
    if (a_.writes(0, bytes, {})) continue;
    a_.poll();
    ASSERT_TRUE(a_.writes(0, bytes, {})) << i;
  }
  EXPECT_LT(a_.lane->counters().signals, 2000U);
}

TEST_F(LaneTest, PostsReceivesAgainBeforeItTells) {
  connect({.receive_depth = 3});
  for (std::uint32_t i = 0; i < 300; i += 3) {
    for (std::uint32_t j = 0; j < 3; ++j) ASSERT_TRUE(a_.writes(0, 8, i + j));
    EXPECT_EQ(b_.poll(), (Values{i, i + 1, i + 2}));
    a_.poll();
  }
  for (std::uint32_t j = 0; j < 4; ++j) ASSERT_TRUE(a_.writes(0, 8, j));  // One more than agreed.
  a_.poll();
  EXPECT_EQ(a_.failure(), fmt::format("unavailable: rdma fa/1 -> 10.0.0.2: {}",
                                      to_string(Status::kRnrRetryExceeded)));
  EXPECT_EQ(b_.failure(), "");
  EXPECT_EQ(b_.poll(), (Values{0, 1, 2}));
}

TEST_F(LaneTest, WakesForAnAnnouncementAndForAnEvent) {
  connect();
  asio::io_context loop;
  int n_calls = 0;
  const auto run = [&] {
    loop.restart();
    loop.poll();
    return std::exchange(n_calls, 0);
  };
  b_.lane->arm(loop.get_executor(), [&] { ++n_calls; }, /*for_completions=*/true);
  EXPECT_EQ(run(), 0);
  ASSERT_TRUE(a_.writes(0, 8, 1));
  ASSERT_TRUE(a_.writes(0, 8, 2));
  EXPECT_EQ(run(), 1);
  fabric_.set_port_up("fb", false);
  EXPECT_EQ(run(), 1);
  EXPECT_EQ(run(), 0);
}

TEST_F(LaneTest, SleepsThroughCompletionsThatNobodyWaitsFor) {
  connect();
  asio::io_context loop;
  int n_calls = 0;
  const auto run = [&] {
    loop.restart();
    loop.poll();
    return std::exchange(n_calls, 0);
  };
  b_.lane->arm(loop.get_executor(), [&] { ++n_calls; }, /*for_completions=*/false);
  ASSERT_TRUE(a_.writes(0, 8, 1));
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(b_.poll(), (Values{1}));
  fabric_.set_port_up("fb", false);
  EXPECT_EQ(run(), 1);
  EXPECT_EQ(b_.failure(), "");  // Found by the next poll, which the event is looked at by.
  b_.poll();
  EXPECT_NE(b_.failure(), "");
}

// Each lane is one thread's, and neither waits for the other but by messages.
TEST_F(LaneTest, ServesTwoThreadsWithALaneEach) {
  connect({.receive_depth = 8});
  constexpr std::uint32_t kRounds = 2000;
  std::atomic<bool> is_over = false;  // So that neither waits for one who gave up.
  const auto play = [&](LanePeer& peer, std::uint32_t first) {
    std::vector<Announcement> got;
    std::uint64_t sum = 0;
    for (std::uint32_t i = first; i < kRounds; i += 2) {
      if (i > 0) {
        got.clear();
        while (got.empty() && !is_over && !peer.lane->failure()) {
          peer.lane->poll(got);
          std::this_thread::yield();
        }
        if (got.size() != 1 || got[0].value != i - 1) break;
        sum += std::to_integer<std::uint64_t>(peer.window[i % 100]);
      }
      peer.source[(i + 1) % 100] = std::byte{1};
      const std::array<Part, 1> parts = {Part(peer.source).first(400)};
      const auto written =
          peer.lane->write({.offset = 0, .parts = parts, .announce = i, .signal = false});
      if (!written.ok() || !*written) break;
    }
    if (sum < kRounds / 2 - 1) is_over = true;
    return sum;
  };
  std::uint64_t sum_b = 0;
  std::jthread other([&] { sum_b = play(b_, 1); });
  const std::uint64_t sum_a = play(a_, 0);
  other.join();
  EXPECT_EQ(sum_a, kRounds / 2 - 1);
  EXPECT_EQ(sum_b, kRounds / 2);
}

}  // namespace
}  // namespace recua::net::verbs
