// Two links of opposite directions on one connection: each gets what is its own, whoever reads it.
#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "net/verbs/fake_fabric.h"
#include "rpc/link.h"
#include "rpc/link_record.h"
#include "rpc/tensor_header.h"
#include "rpc/test_world.h"

namespace recua::rpc {
namespace {

constexpr ChannelId kId{.session = 7, .epoch = 3};
constexpr RingShape kRing{.n_slots = 4, .slot_bytes = 8192};

/// One process: it sends to the other and receives from it.
struct End {
  std::vector<std::byte> memory = std::vector<std::byte>(kRing.n_slots * kRing.slot_bytes);
  std::vector<std::byte> source = std::vector<std::byte>(kRing.n_slots * kRing.slot_bytes);
  LinkPolicy policy;
  std::unique_ptr<ChannelSender> sender;
  std::unique_ptr<ChannelReceiver> receiver;
  std::deque<std::uint32_t> held;
  std::uint64_t n_taken = 0;
  bool intact = true;
  std::optional<Error> error;

  /// Whether a result is no error; notes the first one.
  template <class T>
  bool fine(const Result<T>& result) {
    if (!result.ok() && !error) error = result.error();
    return result.ok();
  }
};

struct SharedWorld : TestWorld {
  explicit SharedWorld(bool with_rdma = false, std::uint64_t seed = 1) : TestWorld({.seed = seed}) {
    fabric.add_device("a", "a0", {"10.0.0.1"}, {});
    fabric.add_device("b", "b0", {"10.0.0.2"}, {});
    providers = {fabric.provider("a"), fabric.provider("b")};
    by_hand = server.get();
    const std::array<std::shared_ptr<LinkStream>, 2> streams{make_link_stream(std::move(client)),
                                                             make_link_stream(std::move(server))};
    for (std::size_t e = 0; e < 2; ++e) {
      End& end = ends[e];
      end.policy.allow_rdma = with_rdma;
      end.policy.provider = with_rdma ? providers[e].get() : nullptr;
      LinkContext context{.env = e == 0 ? a : b, .policy = &end.policy};
      context.report = [](const std::string&) {};
      end.sender = make_link_sender(context, streams[e], kRing, {std::span(end.source)},
                                    PeerInfo{}.features);
      end.receiver = *make_link_receiver(context, streams[e], kId, kRing, {.bytes = end.memory});
    }
  }
  ~SharedWorld() { fabric.hold_ends(false); }

  static std::uint32_t size_of(std::size_t from, std::uint64_t i) {
    return static_cast<std::uint32_t>(mix(from, i) % 6000);
  }
  static std::byte byte_of(std::size_t from, std::uint64_t i, std::uint32_t k) {
    return std::byte(mix(from * 1000 + i, k));
  }
  bool send(std::size_t from) {
    End& end = ends[from];
    const std::uint64_t i = end.sender->n_sent();
    if (end.sender->credits() == 0 || i - end.sender->n_completed() >= kRing.n_slots) return false;
    const std::uint32_t size = size_of(from, i);
    const std::span<std::byte> rows =
        std::span(end.source).subspan(i % kRing.n_slots * kRing.slot_bytes, size);
    for (std::uint32_t k = 0; k < size; ++k) rows[k] = byte_of(from, i, k);
    const TensorHeader header{.session = kId.session,
                              .epoch = kId.epoch,
                              .step = i,
                              .n_rows = 1,
                              .row_bytes = size,
                              .last = true};
    const Result<bool> sent =
        end.sender->try_send({.header = header, .rows = rows, .descriptor = {}});
    return end.fine(sent) && *sent;
  }
  /// Takes a message in if one has come.
  bool take(std::size_t to) {
    End& end = ends[to];
    const Result<const Incoming*> in = end.receiver->poll();
    if (!end.fine(in) || !*in) return false;
    const std::size_t from = 1 - to;
    end.intact = end.intact && (*in)->header.step == end.n_taken &&
                 (*in)->rows.size() == size_of(from, end.n_taken);
    for (std::uint32_t k = 0; k < (*in)->rows.size(); ++k) {
      end.intact = end.intact && (*in)->rows[k] == byte_of(from, end.n_taken, k);
    }
    ++end.n_taken;
    end.held.push_back((*in)->slot);
    return true;
  }
  void release(std::size_t of, std::size_t keep = 0) {
    End& end = ends[of];
    while (end.held.size() > keep) {
      ASSERT_TRUE(end.fine(end.receiver->release(end.held.front())));
      end.held.pop_front();
    }
  }
  void pass_time() { loop.run_for(std::chrono::milliseconds(20)); }
  void settle_links() {
    for (int i = 0; i < 1000 && !(ends[0].sender->settled() && ends[1].sender->settled()); ++i) {
      for (End& end : ends) {
        ASSERT_TRUE(end.fine(end.sender->poll()));
        ASSERT_TRUE(end.fine(end.receiver->poll()));
      }
      loop.run_one_or_advance();
    }
    ASSERT_TRUE(ends[0].sender->settled() && ends[1].sender->settled());
  }
  /// Both send n more messages, in an order that follows from the seed.
  void run(std::uint64_t n, std::uint64_t seed) {
    Rng rng(seed);
    const std::array<std::uint64_t, 2> until{ends[1].n_taken + n, ends[0].n_taken + n};
    for (int i = 0; i < 200'000; ++i) {
      if (ends[1].n_taken == until[0] && ends[0].n_taken == until[1]) break;
      const std::size_t e = rng.next() % 2;
      switch (rng.next() % 4) {
        case 0:
          if (ends[e].sender->n_sent() < until[e]) send(e);
          break;
        case 1:
          ends[e].fine(ends[e].sender->poll());
          break;
        case 2:
          take(e);
          break;
        default:
          release(e, rng.next() % 3);
          loop.run_one_or_advance();
      }
      ASSERT_FALSE(ends[e].error) << ends[e].error->message;
    }
    EXPECT_EQ(ends[1].n_taken, until[0]);
    EXPECT_EQ(ends[0].n_taken, until[1]);
    EXPECT_TRUE(ends[0].intact && ends[1].intact);
  }

  net::verbs::FakeFabric fabric;
  std::array<std::unique_ptr<net::verbs::Provider>, 2> providers;
  std::array<End, 2> ends;
  net::Connection* by_hand = nullptr;  // End 1's.
};

TEST(SharedConnection, CarriesBothDirectionsInAnyOrder) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SharedWorld world(false, seed);
    world.settle_links();
    world.run(60, seed);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SharedConnection, BringsCreditsThatLieBehindMessagesNobodyTakes) {
  SharedWorld world;
  world.settle_links();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(world.send(0) && world.send(1));
  world.pass_time();
  EXPECT_EQ(world.ends[0].sender->credits(), 0u);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(world.take(1));
  world.release(1);
  ASSERT_TRUE(world.ends[1].fine(world.ends[1].receiver->poll()));
  world.pass_time();
  // End 0 takes no message meanwhile: its sender reads on to what it waits for.
  for (int i = 0; i < 200 && world.ends[0].sender->credits() < 4; ++i) {
    ASSERT_TRUE(world.ends[0].fine(world.ends[0].sender->poll()));
    world.loop.run_one_or_advance();
  }
  EXPECT_EQ(world.ends[0].sender->credits(), 4u);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(world.take(0));
  EXPECT_TRUE(world.ends[0].intact && world.ends[1].intact);
}

TEST(SharedConnection, TellsTheSenderWhatItsReceiverHasRead) {
  SharedWorld world;
  world.settle_links();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(world.send(0));
  ASSERT_TRUE(world.ends[0].fine(world.ends[0].sender->poll()));  // All that came is known.
  world.pass_time();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(world.take(1));
  world.release(1);
  world.pass_time();
  while (world.ends[0].sender->credits() == 0) {
    ASSERT_TRUE(world.ends[0].fine(world.ends[0].receiver->poll()));
    world.loop.run_one_or_advance();
  }
  // Who waits for credits goes by this answer, not by credits().
  EXPECT_TRUE(*world.ends[0].sender->poll());
  EXPECT_FALSE(*world.ends[0].sender->poll());
}

TEST(SharedConnection, HasAFastPathEachWayAndGoesOnWithoutThem) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    SharedWorld world(true, seed);
    world.settle_links();
    for (const End& end : world.ends) {
      EXPECT_EQ(end.sender->transport().substr(0, 4), "rdma") << end.sender->transport();
    }
    world.run(30, seed);
    world.fabric.set_port_up("a0", false);
    world.run(60, seed + 100);
    for (const End& end : world.ends) {
      EXPECT_EQ(end.sender->transport().substr(0, 3), "tcp") << end.sender->transport();
      EXPECT_EQ(end.sender->counters().failovers, 1u);
    }
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SharedConnection, EndsBothLinksWithOneReason) {
  SharedWorld world;
  world.settle_links();
  const auto credit = encode_credit(100);
  ASSERT_TRUE(world.loop.run(world.by_hand->write(credit)).ok());
  world.pass_time();
  std::optional<Error> error;
  for (int i = 0; i < 100 && !error; ++i) {
    const auto polled = world.ends[0].receiver->poll();
    if (!polled.ok()) error = polled.error();
  }
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, ErrorCode::kProtocol);
  EXPECT_NE(error->message.find("released 100 slots"), std::string::npos) << error->message;
  EXPECT_EQ(world.ends[0].sender->poll().error().message, error->message);
  world.pass_time();
  for (int i = 0; i < 100 && !world.ends[1].error; ++i) {
    world.ends[1].fine(world.ends[1].receiver->poll());
  }
  ASSERT_TRUE(world.ends[1].error);
  EXPECT_FALSE(world.ends[1].sender->poll().ok());
}

TEST(SharedConnection, IsOfNoUseWithoutOneOfItsLinks) {
  SharedWorld world;
  world.settle_links();
  world.ends[0].receiver.reset();
  Result<bool> polled = true;
  for (int i = 0; i < 100 && polled.ok(); ++i) polled = world.ends[0].sender->poll();
  ASSERT_FALSE(polled.ok());
  EXPECT_NE(polled.error().message.find("has ended"), std::string::npos);
  world.ends[0].sender.reset();
  world.pass_time();
  for (int i = 0; i < 100 && !world.ends[1].error; ++i) {
    world.ends[1].fine(world.ends[1].receiver->poll());
  }
  ASSERT_TRUE(world.ends[1].error);
  EXPECT_EQ(world.ends[1].error->code, ErrorCode::kUnavailable);
}

/// What a link that has a connection for itself says of these bytes.
std::string failure_of_sender(std::span<const std::byte> bytes) {
  TestWorld world;
  const auto sender = make_link_sender({.env = world.a, .policy = nullptr}, std::move(world.client),
                                       kRing, {}, PeerInfo{}.features);
  RECUA_CHECK(world.loop.run(world.server->write(bytes)).ok());
  world.settle();
  for (int i = 0; i < 200; ++i) {
    const Result<bool> polled = sender->poll();
    if (!polled.ok()) return polled.error().message;
  }
  return {};
}
std::string failure_of_receiver(std::span<const std::byte> bytes) {
  TestWorld world;
  std::vector<std::byte> memory(kRing.n_slots * kRing.slot_bytes);
  const auto receiver = *make_link_receiver({.env = world.b, .policy = nullptr},
                                            std::move(world.server), kId, kRing, {.bytes = memory});
  RECUA_CHECK(world.loop.run(world.client->write(bytes)).ok());
  world.settle();
  for (int i = 0; i < 200; ++i) {
    const auto polled = receiver->poll();
    if (!polled.ok()) return polled.error().message;
  }
  return {};
}

TEST(OwnConnection, TakesNothingThatIsTheOtherDirections) {
  const auto credit = encode_credit(0);
  EXPECT_NE(failure_of_receiver(credit).find("a credit does not belong here"), std::string::npos);
  const auto message = encode(TensorHeader{.session = kId.session, .epoch = kId.epoch});
  EXPECT_NE(failure_of_sender(message).find("sent 5243544d where a credit"), std::string::npos)
      << failure_of_sender(message);
  const auto offer = encode_record(RecordKind::kOffer, wire::LinkOffer());
  EXPECT_NE(failure_of_sender(offer).find("link record of kind 1 does not belong here"),
            std::string::npos);
  const auto fenced = encode_record(RecordKind::kFenced, wire::LinkFenced());
  EXPECT_NE(failure_of_receiver(fenced).find("link record of kind 5 does not belong here"),
            std::string::npos);
}

}  // namespace
}  // namespace recua::rpc
