// Lanes over the real provider: what lane_test.cc shows on fake cards, where it depends on cards.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "net/verbs/address.h"
#include "net/verbs/ibv_test_pair.h"
#include "net/verbs/lane.h"

namespace recua::net::verbs {
namespace {

constexpr std::size_t kWindowBytes = std::size_t{256} << 10;

class IbvLane : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<TestPort> ports = test_ports();
    if (ports.empty()) GTEST_SKIP() << "skipped: no RDMA device here";
    for (std::size_t i = 0; i < 2; ++i) {
      const auto chosen =
          choose_ports(*provider->devices(), {.devices = {ports[i].device.name}, .gid_index = {}},
                       ipv4_of(ports[i].gid.gid));
      ASSERT_TRUE(chosen.ok()) << chosen.error().message;
      choices.push_back(chosen->front());
    }
    for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i * 13 + 5);
  }

  void make(const LaneOptions& options) {
    sender = create(choices[0], source, unused, options);
    receiver = create(choices[1], unused, window, options);
    if (HasFailure()) return;
    const auto there = sender->connect(receiver->local());
    ASSERT_TRUE(there.ok()) << there.error().message;
    const auto back = receiver->connect(sender->local());
    ASSERT_TRUE(back.ok()) << back.error().message;
  }
  /// read: what it writes from; exposed: what the peer may write to.
  std::unique_ptr<Lane> create(const PortChoice& port, std::span<std::byte> read,
                               std::span<std::byte> exposed, const LaneOptions& options) {
    const std::array<std::span<std::byte>, 1> sources{read};
    auto lane = Lane::create(*provider, port, exposed, sources, 42, options);
    EXPECT_TRUE(lane.ok()) << lane.error().message;
    return lane.ok() ? std::move(*lane) : nullptr;
  }
  /// Polls both ends, asleep between.
  [[nodiscard]] bool run_until(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + kTestLimit;
    while (std::chrono::steady_clock::now() < deadline) {
      sender->poll(at_sender);
      receiver->poll(arrived);
      sender->poll_events();
      receiver->poll_events();
      if (done()) return true;
      if (direct) {
        EXPECT_TRUE(sender->arm_in(set, /*for_completions=*/true));
        EXPECT_TRUE(receiver->arm_in(set, /*for_completions=*/true));
        if (!sender->poll(at_sender) && !receiver->poll(arrived)) n_slept += set.wait() ? 1 : 0;
        continue;
      }
      sender->arm(loop.get_executor(), [] {}, /*for_completions=*/true);
      receiver->arm(loop.get_executor(), [] {}, /*for_completions=*/true);
      if (sender->poll(at_sender) || receiver->poll(arrived)) continue;
      loop.restart();
      loop.run_one_for(std::chrono::milliseconds(200));
    }
    return false;
  }
  Result<bool> write(std::size_t bytes, std::uint64_t offset, std::uint32_t announce) {
    const std::array<std::span<const std::byte>, 2> parts{
        std::span<const std::byte>(source).first(64),
        std::span<const std::byte>(source).subspan(64, bytes - 64)};
    return sender->write({.offset = offset, .parts = parts, .announce = announce, .signal = true});
  }
  void expect_messages_arrive() {
    constexpr std::size_t kBytes = 8192;
    constexpr std::uint32_t kMessages = 16;
    std::uint32_t n_sent = 0;
    ASSERT_TRUE(run_until([&] {
      while (n_sent < kMessages && n_sent < arrived.size() + 4) {
        const auto written = write(kBytes, n_sent * kBytes, n_sent);
        EXPECT_TRUE(written.ok()) << written.error().message;
        if (!written.ok() || !*written) break;
        ++n_sent;
      }
      return arrived.size() == kMessages && sender->n_completed() == kMessages;
    })) << (sender->failure() ? sender->failure()->message : "the sender has not failed");
    for (std::uint32_t i = 0; i < kMessages; ++i) {
      EXPECT_EQ(arrived[i].value, i);
      EXPECT_TRUE(std::equal(source.begin(), source.begin() + kBytes,
                             window.begin() + static_cast<std::ptrdiff_t>(i * kBytes)));
    }
  }

  std::unique_ptr<Provider> provider = make_ibv_provider();
  std::vector<PortChoice> choices;
  asio::io_context loop{1};
  WaitSet set;
  bool direct = false;  // Asleep in the set instead of the loop.
  std::size_t n_slept = 0;
  std::vector<std::byte> source = std::vector<std::byte>(kWindowBytes);
  std::vector<std::byte> window = std::vector<std::byte>(kWindowBytes);
  std::vector<std::byte> unused = std::vector<std::byte>(4096);
  std::vector<Announcement> arrived;
  std::vector<Announcement> at_sender;
  std::unique_ptr<Lane> sender;
  std::unique_ptr<Lane> receiver;
};

TEST_F(IbvLane, CarriesWritesWithImmediates) {
  make({});
  ASSERT_FALSE(HasFailure());
  expect_messages_arrive();
  EXPECT_EQ(arrived[0].bytes, 8192U);
  EXPECT_EQ(sender->counters().posts, sender->counters().requests) << "one request per message";
}

TEST_F(IbvLane, CarriesWritesAnnouncedBySends) {
  make({.use_immediate = false});
  ASSERT_FALSE(HasFailure());
  expect_messages_arrive();
  EXPECT_EQ(sender->counters().posts * 2, sender->counters().requests);
}

TEST_F(IbvLane, WakesWhoSleepsInASet) {
  make({});
  ASSERT_FALSE(HasFailure());
  direct = true;
  expect_messages_arrive();
  EXPECT_GT(n_slept, 0U) << "nothing was ever waited for";
  // Nothing is left that would wake again and again.
  EXPECT_TRUE(sender->arm_in(set, /*for_completions=*/false));
  EXPECT_TRUE(receiver->arm_in(set, /*for_completions=*/true));
  while (sender->poll(at_sender) || receiver->poll(arrived)) {
  }
  set.look();
  EXPECT_TRUE(sender->arm_in(set, /*for_completions=*/false));
  EXPECT_TRUE(receiver->arm_in(set, /*for_completions=*/true));
  EXPECT_FALSE(set.look());
}

TEST_F(IbvLane, FencesOffWhatTheSenderStillWrites) {
  make({});
  ASSERT_FALSE(HasFailure());
  expect_messages_arrive();
  receiver->fence(arrived);
  std::fill(window.begin(), window.end(), std::byte{0});
  const auto written = write(8192, 0, 77);
  ASSERT_TRUE(written.ok() && *written);
  ASSERT_TRUE(run_until([&] { return sender->failure().has_value(); }));
  EXPECT_EQ(std::count(window.begin(), window.end(), std::byte{0}), std::ptrdiff_t{kWindowBytes});
  EXPECT_EQ(arrived.size(), 16U);
}

TEST_F(IbvLane, LeavesNoDescriptorAfterManyConnections) {
  const auto n_open = [] {
    const std::filesystem::directory_iterator open("/proc/self/fd");
    return std::distance(begin(open), end(open));
  };
  make({});
  ASSERT_FALSE(HasFailure());
  sender->arm(
      loop.get_executor(), [] {},
      /*for_completions=*/true);  // The loop opens its own at the first wait.
  const auto before = n_open();
  for (int i = 0; i < 20; ++i) {
    sender.reset();
    receiver.reset();
    make({});
    ASSERT_FALSE(HasFailure());
    sender->arm(loop.get_executor(), [] {}, /*for_completions=*/true);
    receiver->arm(loop.get_executor(), [] {}, /*for_completions=*/true);
  }
  EXPECT_EQ(n_open(), before);
}

}  // namespace
}  // namespace recua::net::verbs
