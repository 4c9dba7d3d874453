#include <cstring>
#include <deque>
#include <optional>
#include <thread>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "net/direct_sleep.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_pair.h"
#include "rpc/delayed_receiver.h"
#include "rpc/handshake.h"
#include "rpc/tcp_channel.h"
#include "rpc/tensor_header.h"
#include "rpc/test_world.h"

namespace recua::rpc {
namespace {

constexpr ChannelId kId{.session = 0x1122, .epoch = 3};

/// A message whose bytes follow from its number.
struct TestMessage {
  TestMessage(std::uint64_t number, std::uint32_t n_rows, std::uint32_t row_bytes,
              std::uint32_t descriptor_bytes)
      : rows(std::size_t{n_rows} * row_bytes), descriptor(descriptor_bytes) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      rows[i] = static_cast<std::byte>(mix(number, i / 8) >> (i % 8 * 8));
    for (std::size_t i = 0; i < descriptor.size(); ++i)
      descriptor[i] = static_cast<std::byte>(mix(number + 1'000'000, i));
    header.session = kId.session;
    header.epoch = kId.epoch;
    header.step = number;
    header.n_rows = n_rows;
    header.row_bytes = row_bytes;
    header.descriptor_bytes = descriptor_bytes;
  }
  [[nodiscard]] Outgoing outgoing() const { return {header, rows, descriptor}; }

  TensorHeader header;
  std::vector<std::byte> rows;
  std::vector<std::byte> descriptor;
};

void expect_same(const Incoming& in, const TestMessage& sent, std::uint64_t sequence) {
  EXPECT_EQ(in.header.step, sent.header.step);
  EXPECT_EQ(in.header.sequence, sequence);
  EXPECT_TRUE(std::equal(in.rows.begin(), in.rows.end(), sent.rows.begin(), sent.rows.end()));
  EXPECT_TRUE(std::equal(in.descriptor.begin(), in.descriptor.end(), sent.descriptor.begin(),
                         sent.descriptor.end()));
}

struct ChannelWorld : TestWorld {
  explicit ChannelWorld(RingShape shape, const net::SimOptions& options = {},
                        ChannelId receiver_id = kId)
      : TestWorld(options), ring(shape), memory(shape.n_slots * shape.slot_bytes) {
    sender = make_tcp_sender(std::move(client), ring, PeerInfo{}.features);
    receiver = *make_tcp_receiver(std::move(server), receiver_id, ring, memory);
  }
  RingShape ring;
  std::vector<std::byte> memory;
  std::unique_ptr<ChannelSender> sender;
  std::unique_ptr<ChannelReceiver> receiver;
};

/// The receiver against bytes that a hostile sender writes.
struct RawSender : TestWorld {
  explicit RawSender(RingShape shape = {.n_slots = 2, .slot_bytes = 256})
      : memory(shape.n_slots * shape.slot_bytes) {
    receiver = *make_tcp_receiver(std::move(server), kId, shape, memory);
  }
  void send(const TestMessage& message, std::uint64_t sequence) {
    TensorHeader header = message.header;
    header.sequence = sequence;
    const auto bytes = encode(header);
    write(bytes);
    write(message.rows);
    write(message.descriptor);
    settle();
  }
  void write(std::span<const std::byte> bytes) { EXPECT_TRUE(loop.run(client->write(bytes)).ok()); }
  std::string failure() {
    const auto out = receiver->poll();
    EXPECT_FALSE(out.ok());
    if (out.ok()) return "";
    EXPECT_EQ(out.error().code, ErrorCode::kProtocol);
    EXPECT_NE(out.error().message.find("a:"), std::string::npos) << out.error().message;
    EXPECT_EQ(receiver->poll().error().message, out.error().message);  // And stays.
    return out.error().message;
  }
  std::vector<std::byte> memory;
  std::unique_ptr<ChannelReceiver> receiver;
};

TEST(TcpChannel, DeliversInOrderWhateverTheTimingAndNeverSpendsMoreThanItsCredits) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    const RingShape ring{.n_slots = static_cast<std::uint32_t>(1 + rng.below(5)),
                         .slot_bytes = 4096};
    ChannelWorld world(ring, {.seed = seed,
                              .window_bytes = static_cast<std::size_t>(100 + rng.below(20'000)),
                              .segment_bytes = static_cast<std::size_t>(1 + rng.below(3000))});
    constexpr std::uint64_t kMessages = 60;
    std::deque<TestMessage> sent;
    std::deque<std::uint32_t> held;
    std::uint64_t n_received = 0;
    int n_idle = 0;
    while (n_received < kMessages) {
      ASSERT_LT(++n_idle, 100'000) << "stuck";
      ASSERT_TRUE(world.sender->poll().ok());
      if (sent.size() < kMessages && rng.below(2) == 0) {
        TestMessage message(sent.size(), static_cast<std::uint32_t>(rng.below(4)), 1000,
                            static_cast<std::uint32_t>(rng.below(900)));
        const std::uint32_t credits = world.sender->credits();
        sent.push_back(std::move(message));
        const Result<bool> taken = world.sender->try_send(sent.back().outgoing());
        ASSERT_TRUE(taken.ok()) << taken.error().message;
        EXPECT_EQ(*taken, credits > 0);
        if (!*taken) sent.pop_back();
      }
      auto in = world.receiver->poll();
      ASSERT_TRUE(in.ok()) << in.error().message;
      if (*in) {
        expect_same(**in, sent[n_received], n_received);
        EXPECT_EQ((*in)->slot, n_received % ring.n_slots);
        held.push_back((*in)->slot);
        ++n_received;
        EXPECT_LE(held.size(), ring.n_slots);
      }
      if (!held.empty() && (rng.below(3) == 0 || held.size() == ring.n_slots)) {
        ASSERT_TRUE(world.receiver->release(held.front()).ok());
        held.pop_front();
      }
      world.loop.run_one_or_advance();
    }
    EXPECT_EQ(world.sender->n_sent(), kMessages);
    EXPECT_EQ(world.sender->n_completed(), kMessages);
  }
}

TEST(TcpChannel, NeverStallsWhenTheReceiverReleasesEverything) {
  for (std::uint32_t n_slots = 1; n_slots <= 9; ++n_slots) {
    ChannelWorld world({.n_slots = n_slots, .slot_bytes = 128});
    const TestMessage message(1, 1, 32, 8);
    for (int i = 0; i < 50; ++i) {
      while (true) {
        const Result<bool> sent = world.sender->try_send(message.outgoing());
        ASSERT_TRUE(sent.ok());
        if (*sent) break;
        world.settle();
        ASSERT_TRUE(*world.sender->poll()) << "no credit came back with " << n_slots << " slots";
      }
      world.settle();
      auto in = world.receiver->poll();
      ASSERT_TRUE(in.ok() && *in);
      ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
    }
  }
}

// Who keeps a credit back waits with one left: the receiver, which has no reason to poll again,
// must tell what it releases.
TEST(TcpChannel, TellsASenderThatStarvesWithCreditsLeft) {
  ChannelWorld world({.n_slots = 4, .slot_bytes = 4096});
  world.settle();
  for (std::uint64_t i = 0; i < 3; ++i) {
    const TestMessage message(i, 1, 64, 0);
    Outgoing outgoing = message.outgoing();
    outgoing.starving = i == 2;
    ASSERT_TRUE(*world.sender->try_send(outgoing));
    world.settle();
    const auto came = *world.receiver->poll();
    ASSERT_TRUE(came);
    EXPECT_EQ(came->header.starving, i == 2);
    if (i < 2) continue;
    for (const std::uint32_t slot : {0U, 1U, 2U}) ASSERT_TRUE(world.receiver->release(slot).ok());
  }
  world.settle();
  ASSERT_TRUE(*world.sender->poll());
  EXPECT_EQ(world.sender->credits(),
            2U);  // The first release told; no need to tell the others yet.
}

// Who sleeps polls once more after arming. What that poll takes in, the connection tells no more.
TEST(DelayedReceiver, WakesForWhatAPollAfterArmingTookIn) {
  ChannelWorld world({.n_slots = 4, .slot_bytes = 4096});
  const auto receiver =
      make_delayed_receiver(std::move(world.receiver), world.b, std::chrono::milliseconds(500));
  ASSERT_FALSE(*receiver->poll());
  int n_woken = 0;
  receiver->arm([&] { ++n_woken; });
  const TestMessage message(7, 1, 64, 0);
  ASSERT_TRUE(*world.sender->try_send(message.outgoing()));
  world.settle();
  ASSERT_FALSE(*receiver->poll());
  n_woken = 0;
  world.loop.run_for(std::chrono::seconds(1));
  EXPECT_EQ(n_woken, 1);
  const auto came = *receiver->poll();
  ASSERT_TRUE(came);
  expect_same(*came, message, 0);
}

TEST(TcpChannel, CopiesNothingAndNeedsOneCallPerEqualMessage) {
  ChannelWorld world({.n_slots = 8, .slot_bytes = 4096});
  for (std::uint64_t i = 0; i < 100; ++i) {
    const TestMessage message(i, 1, 2048, 40);
    ASSERT_TRUE(*world.sender->try_send(message.outgoing()));
    EXPECT_EQ(world.sender->n_completed(), i + 1);
    world.settle();
    auto in = world.receiver->poll();
    ASSERT_TRUE(in.ok() && *in);
    expect_same(**in, message, i);
    ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
    world.settle();
    ASSERT_TRUE(world.sender->poll().ok());
  }
  EXPECT_EQ(world.receiver->counters().payload_copies, 0u);
  EXPECT_EQ(world.sender->counters().payload_copies, 0u);
  EXPECT_LE(world.receiver->counters().system_calls, 100u + 2u + 25u);  // Reads, and credits.
  EXPECT_EQ(world.receiver->counters().messages, 100u);
  EXPECT_EQ(world.receiver->counters().bytes, 100u * (64 + 2048 + 40));
}

TEST(TcpChannel, PadsShortMessagesAsFarAsSlotsAndThePeerAllow) {
  const auto bytes_on_the_wire = [](const TestMessage& message, std::uint64_t slot_bytes,
                                    std::vector<std::uint32_t> features) {
    TestWorld world;
    auto sender = make_tcp_sender(std::move(world.client), {.n_slots = 2, .slot_bytes = slot_bytes},
                                  features);
    EXPECT_TRUE(*sender->try_send(message.outgoing()));
    world.settle();
    std::vector<std::byte> bytes(4096);
    return *world.server->try_read(bytes);
  };
  const std::vector<std::uint32_t> pads{static_cast<std::uint32_t>(Feature::kPadding)};
  EXPECT_EQ(bytes_on_the_wire(TestMessage(0, 1, 10, 5), 4096, pads), 576u);
  EXPECT_EQ(bytes_on_the_wire(TestMessage(0, 1, 10, 5), 256, pads), 256u);
  EXPECT_EQ(bytes_on_the_wire(TestMessage(0, 1, 10, 5), 4096, {}), 79u);
  EXPECT_EQ(bytes_on_the_wire(TestMessage(0, 1, 600, 5), 4096, pads), 669u);
  TestMessage passed_on(0, 1, 600, 5);
  passed_on.header.padding_bytes = 40;  // As the header of a received message may have.
  EXPECT_EQ(bytes_on_the_wire(passed_on, 4096, pads), 669u);
}

TEST(TcpChannel, RefusesToSendWhatNoSlotHolds) {
  ChannelWorld world({.n_slots = 2, .slot_bytes = 256});
  const TestMessage fits(0, 1, 100, 92);
  const TestMessage large(0, 1, 100, 93);
  EXPECT_EQ(world.sender->try_send(large.outgoing()).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(*world.sender->try_send(fits.outgoing()));
}

TEST(TcpChannel, DropsAnOlderEpochAndGivesItsSlotBack) {
  ChannelWorld world({.n_slots = 2, .slot_bytes = 256}, {}, {.session = 0x1122, .epoch = 4});
  TestMessage stale(0, 1, 100, 10);
  TestMessage current(1, 1, 100, 10);
  current.header.epoch = 4;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const bool is_stale = i % 3 != 2;
    const TestMessage& message = is_stale ? stale : current;
    while (!*world.sender->try_send(message.outgoing())) {
      world.settle();
      ASSERT_TRUE(world.sender->poll().ok());
    }
    world.settle();
    auto in = world.receiver->poll();
    ASSERT_TRUE(in.ok()) << in.error().message;
    EXPECT_EQ(*in != nullptr, !is_stale);
    if (*in) {
      EXPECT_EQ((*in)->header.sequence, i);
      ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
    }
  }
}

TEST(TcpChannel, GivesADroppedSlotBackOnlyAfterThoseBeforeIt) {
  ChannelWorld world({.n_slots = 3, .slot_bytes = 256}, {}, {.session = 0x1122, .epoch = 4});
  TestMessage stale(0, 1, 100, 10);
  TestMessage current(1, 1, 100, 10);
  current.header.epoch = 4;
  for (const TestMessage* message : {&current, &stale, &stale})
    ASSERT_TRUE(*world.sender->try_send(message->outgoing()));
  world.settle();
  auto in = world.receiver->poll();
  ASSERT_TRUE(in.ok() && *in);
  EXPECT_EQ(*world.receiver->poll(), nullptr);
  world.settle();
  ASSERT_TRUE(world.sender->poll().ok());
  EXPECT_EQ(world.sender->credits(), 0u);
  ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
  world.settle();
  ASSERT_TRUE(world.sender->poll().ok());
  EXPECT_EQ(world.sender->credits(), 3u);
}

TEST(TcpChannel, RefusesSlotsReleasedOutOfTurn) {
  ChannelWorld world({.n_slots = 3, .slot_bytes = 256});
  EXPECT_EQ(world.receiver->release(0).error().code, ErrorCode::kInvalidArgument);
  const TestMessage message(0, 1, 100, 10);
  ASSERT_TRUE(*world.sender->try_send(message.outgoing()));
  world.settle();
  ASSERT_NE(*world.receiver->poll(), nullptr);
  EXPECT_EQ(world.receiver->release(1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(world.receiver->release(0).ok());
}

TEST(TcpChannel, EndsWhenASenderBreaksTheRules) {
  const auto failure = [](const std::function<void(TestMessage&)>& change,
                          std::uint64_t sequence = 0) {
    RawSender world;
    TestMessage message(0, 1, 100, 10);
    change(message);
    world.send(message, sequence);
    return world.failure();
  };
  const auto nothing = [](TestMessage&) {};
  EXPECT_NE(failure([](TestMessage& m) { m.header.session = 5; }).find("session 5"),
            std::string::npos);
  EXPECT_NE(failure([](TestMessage& m) { m.header.epoch = 9; }).find("epoch 9, the channel's is 3"),
            std::string::npos);
  EXPECT_NE(failure(nothing, 1).find("sequence 1, expected 0"), std::string::npos);
  EXPECT_NE(failure([](TestMessage& m) { m.header.n_rows = 3; }).find("a slot has 256"),
            std::string::npos);
  EXPECT_NE(failure([](TestMessage& m) { m.header.padding_bytes = 83; }).find("padding of 83"),
            std::string::npos);
  EXPECT_NE(failure([](TestMessage& m) { m.header.padding_bytes = 0xffff; }).find("a slot has"),
            std::string::npos);
  EXPECT_NE(failure([](TestMessage& m) {
              m.header.n_rows = m.header.row_bytes = m.header.descriptor_bytes = 0xffffffff;
            }).find("a slot has 256"),
            std::string::npos);
}

TEST(TcpChannel, EndsWhenASenderHasNoCredit) {
  RawSender world;
  const TestMessage message(0, 1, 100, 10);
  for (std::uint64_t i = 0; i < 3; ++i) world.send(message, i);
  ASSERT_NE(*world.receiver->poll(), nullptr);
  ASSERT_NE(*world.receiver->poll(), nullptr);
  EXPECT_NE(world.failure().find("message 2 without a credit"), std::string::npos);
}

TEST(TcpChannel, EndsOnGarbage) {
  RawSender world;
  world.write(std::vector<std::byte>(64, std::byte{0xee}));
  world.settle();
  EXPECT_NE(world.failure().find("magic at byte 0 is eeeeeeee"), std::string::npos);
}

TEST(TcpChannel, EndsWhenCreditsAreForged) {
  const auto credits = [](std::uint64_t n_released, int n_times) {
    TestWorld world;
    auto sender =
        make_tcp_sender(std::move(world.client), RingShape{.n_slots = 4, .slot_bytes = 256});
    const TestMessage message(0, 1, 100, 10);
    EXPECT_TRUE(*sender->try_send(message.outgoing()));
    for (int i = 0; i < n_times; ++i) {
      const auto bytes = encode_credit(i == 0 ? n_released : 0);
      EXPECT_TRUE(world.loop.run(world.server->write(bytes)).ok());
    }
    world.settle();
    sender->arm([] {}, /*for_completions=*/false);  // With credits left it looks when woken.
    world.settle();
    return sender->poll();
  };
  EXPECT_TRUE(credits(1, 1).ok());
  const Result<bool> too_many = credits(2, 1);
  ASSERT_FALSE(too_many.ok());
  EXPECT_EQ(too_many.error().code, ErrorCode::kProtocol);
  EXPECT_NE(too_many.error().message.find("b:7500 says that it released 2 slots"),
            std::string::npos);
  EXPECT_EQ(credits(1, 2).error().code, ErrorCode::kProtocol);  // 1, then 0: backwards.
  EXPECT_EQ(credits(~std::uint64_t{0}, 1).error().code, ErrorCode::kProtocol);
}

TEST(TcpChannel, ReportsAPeerThatVanished) {
  ChannelWorld world({.n_slots = 2, .slot_bytes = 256});
  bool sender_woken = false;
  bool receiver_woken = false;
  world.sender->arm([&] { sender_woken = true; }, /*for_completions=*/true);
  world.receiver->arm([&] { receiver_woken = true; });
  world.settle();
  EXPECT_FALSE(sender_woken || receiver_woken);
  world.network.cut("a", "b");
  world.settle();
  EXPECT_TRUE(sender_woken && receiver_woken);
  EXPECT_EQ(world.sender->poll().error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(world.receiver->poll().error().code, ErrorCode::kUnavailable);
  EXPECT_NE(world.sender->poll().error().message.find("b:7500"), std::string::npos);
}

TEST(TcpChannel, NeedsMemoryForItsRing) {
  TestWorld world;
  std::vector<std::byte> memory(511);
  const RingShape ring{.n_slots = 2, .slot_bytes = 256};
  EXPECT_EQ(make_tcp_receiver(std::move(world.server), kId, ring, memory).error().code,
            ErrorCode::kInvalidArgument);
}

// As a worker does it: each end on its own thread and loop, polling a while, then asleep in its
// loop or, where direct, in a set.
void run_between_threads(bool direct) {
  constexpr std::uint64_t kMessages = 2000;
  constexpr RingShape kRing{.n_slots = 4, .slot_bytes = 20'000};
  net::asio::io_context setup{1};
  net::TcpNetwork network{setup.get_executor()};
  net::TcpPair pair = net::connect_over_loopback(setup, network);

  std::jthread receiving([&] {
    net::asio::io_context io{1};
    std::vector<std::byte> memory(kRing.n_slots * kRing.slot_bytes);
    auto moved = *pair.server->move_to(io.get_executor());
    auto receiver = *make_tcp_receiver(std::move(moved), kId, kRing, memory);
    net::DirectSleep asleep([&](const net::WaitSet& set) { return receiver->arm_in(set); });
    for (std::uint64_t i = 0; i < kMessages;) {
      auto in = receiver->poll();
      ASSERT_TRUE(in.ok()) << in.error().message;
      if (*in) {
        const TestMessage expected(i, static_cast<std::uint32_t>(i % 5), 3000, 40);
        expect_same(**in, expected, i);
        ASSERT_TRUE(receiver->release((*in)->slot).ok());
        ++i;
        continue;
      }
      if (direct && asleep.arm()) {
        asleep.sleep();
        continue;
      }
      bool ready = false;
      receiver->arm([&] { ready = true; });
      io.restart();
      while (!ready) io.run_one();
    }
  });
  std::jthread sending([&] {
    net::asio::io_context io{1};
    auto moved = *pair.client->move_to(io.get_executor());
    auto sender = make_tcp_sender(std::move(moved), kRing);
    net::DirectSleep asleep([&](const net::WaitSet& set) { return sender->arm_in(set, true); });
    std::deque<TestMessage> alive;
    for (std::uint64_t i = 0; i < kMessages || sender->n_completed() < kMessages;) {
      if (i < kMessages && sender->credits() > 0) {
        alive.emplace_back(i, static_cast<std::uint32_t>(i % 5), 3000, 40);
        const Result<bool> sent = sender->try_send(alive.back().outgoing());
        ASSERT_TRUE(sent.ok()) << sent.error().message;
        ASSERT_TRUE(*sent);
        ++i;
      }
      if (sender->n_completed() == kMessages) break;  // The receiver may have left with the last.
      const Result<bool> moved_any = sender->poll();
      ASSERT_TRUE(moved_any.ok()) << moved_any.error().message;
      while (i - alive.size() < sender->n_completed()) alive.pop_front();
      if (*moved_any || (i < kMessages && sender->credits() > 0)) continue;
      if (direct && asleep.arm()) {
        asleep.sleep();
        continue;
      }
      bool ready = false;
      sender->arm([&] { ready = true; }, /*for_completions=*/true);
      io.restart();
      while (!ready) io.run_one();
    }
    // Stays until the receiver has everything: closing with unread credits would reset the stream.
    receiving.join();
  });
}

// As a stage does it that cannot send on: it holds a message, and reads no more.
TEST(TcpChannel, WakesNobodyWhoHasLeftTheSet) {
  constexpr RingShape kRing{.n_slots = 4, .slot_bytes = 4096};
  net::asio::io_context setup{1};
  net::TcpNetwork network{setup.get_executor()};
  net::TcpPair pair = net::connect_over_loopback(setup, network);
  net::asio::io_context io;
  std::vector<std::byte> memory(kRing.n_slots * kRing.slot_bytes);
  auto sender = make_tcp_sender(*pair.client->move_to(io.get_executor()), kRing);
  auto receiver = *make_tcp_receiver(*pair.server->move_to(io.get_executor()), kId, kRing, memory);
  net::WaitSet set;
  ASSERT_TRUE(receiver->arm_in(set));
  const TestMessage first(0, 0, 100, 10);
  const TestMessage second(1, 0, 100, 10);
  ASSERT_TRUE(*sender->try_send(first.outgoing()));
  EXPECT_TRUE(set.wait());
  const Incoming* held = nullptr;
  while (!held) held = *receiver->poll();
  ASSERT_TRUE(*sender->try_send(second.outgoing()));
  EXPECT_TRUE(set.wait()) << "the second message has come and nobody reads it";
  receiver->leave_set();
  EXPECT_FALSE(set.wait());
  ASSERT_TRUE(receiver->arm_in(set));
  EXPECT_TRUE(set.wait());
  ASSERT_TRUE(receiver->release(held->slot).ok());
  held = nullptr;
  while (!held) held = *receiver->poll();
  expect_same(*held, second, 1);
}

TEST(TcpChannel, RunsBetweenThreadsThatPollAndSleep) { run_between_threads(/*direct=*/false); }
TEST(TcpChannel, RunsBetweenThreadsThatSleepInSets) { run_between_threads(/*direct=*/true); }

}  // namespace
}  // namespace recua::rpc
