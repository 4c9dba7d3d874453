// Links as they should be: which transport is agreed on, what it costs, what is said about it.
#include "rpc/link.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "rpc/link_world.h"
#include "rpc/verbs_path.h"

namespace recua::rpc {
namespace {

TEST(Link, CarriesMessagesByRdmaAndCopiesNothing) {
  LinkWorld world;
  EXPECT_EQ(world.sender->credits(), 0u);  // Nothing leaves before both ends have agreed.
  ASSERT_TRUE(world.settle_link()) << world.what_failed();
  EXPECT_EQ(world.sender->transport(), "rdma a0/1 gid 1 (RoCEv2 10.0.0.1) mtu 4096");
  ASSERT_TRUE(world.run(500, 8192)) << world.what_failed();
  const ChannelCounters& sent = world.sender->counters();
  const ChannelCounters& received = world.receiver->counters();
  EXPECT_EQ(sent.payload_copies, 0u);
  EXPECT_EQ(received.payload_copies, 0u);
  EXPECT_EQ(sent.messages, 500u);
  EXPECT_EQ(received.messages, 500u);
  EXPECT_EQ(sent.bytes, received.bytes);
  EXPECT_EQ(sent.posts, 500u);     // One post per message,
  EXPECT_EQ(sent.requests, 500u);  // and one request in it.
  EXPECT_EQ(sent.failovers, 0u);
  ASSERT_EQ(world.sender_lines.size(), 1u);
  EXPECT_EQ(world.sender_lines[0], "link a->b: rdma a0/1 gid 1 (RoCEv2 10.0.0.1) mtu 4096");
  ASSERT_EQ(world.receiver_lines.size(), 1u);
  EXPECT_EQ(world.receiver_lines[0], "link a->b: rdma b0/1 gid 1 (RoCEv2 10.0.0.2) mtu 4096");
}

/// The header of a slot that rows alone were written to is still what it was before.
TEST(Link, SendsRowsAloneWhereTheRestFollows) {
  for (const int n_ports : {1, 2}) {
    for (const bool use_immediate : {true, false}) {
      SCOPED_TRACE(fmt::format("{} ports, immediate {}", n_ports, use_immediate));
      LinkWorld world({.ring = {.n_slots = 20, .slot_bytes = 16 * 1024},
                       .n_ports = n_ports,
                       .use_immediate = use_immediate,
                       .n_alike = 4});
      ASSERT_TRUE(world.settle_link());
      ASSERT_TRUE(world.run(10, 8192)) << world.what_failed();
      EXPECT_EQ(world.sender->counters().rows_alone, n_ports == 1 ? 7u : 0u);
      for (std::size_t i = 0; i < 10; ++i) {
        const bool has_header = world.memory[i * world.options.ring.slot_bytes] == std::byte{'R'};
        // Lanes overtake each other: with two every message says all.
        EXPECT_EQ(has_header, i % 4 == 0 || n_ports == 2) << i;
      }
      ASSERT_TRUE(world.run(100, 8192)) << world.what_failed();
    }
  }
}

TEST(Link, SendsLongDescriptorsEachTime) {
  for (const std::size_t bytes : {60u, 64u, 65u, 300u}) {
    LinkWorld world({.n_alike = 1000, .descriptor_bytes = bytes});
    ASSERT_TRUE(world.settle_link());
    ASSERT_TRUE(world.run(20, 1000)) << world.what_failed();
    EXPECT_EQ(world.sender->counters().rows_alone, bytes <= 64 ? 19u : 0u);
  }
}

/// Rows outside of registered memory that staging has no room for go by the connection.
TEST(Link, SendsAllAgainAfterAMessageThatTheLaneDidNotCarry) {
  LinkWorld world({.ring = {.n_slots = 1100, .slot_bytes = 8192}, .n_alike = 1000});
  ASSERT_TRUE(world.settle_link());
  ASSERT_TRUE(world.run(3, 6000)) << world.what_failed();
  EXPECT_EQ(world.sender->counters().rows_alone, 2u);
  const std::vector<std::byte> elsewhere(6000);
  TensorHeader header{.session = LinkWorld::kId.session, .epoch = LinkWorld::kId.epoch, .step = 3};
  header.n_rows = 1;
  header.row_bytes = 6000;
  ASSERT_TRUE(*world.sender->try_send({.header = header, .rows = elsewhere, .descriptor = {}}));
  const Incoming* in = nullptr;
  for (int i = 0; i < 1000 && !in; ++i) {
    ASSERT_TRUE(world.sender->poll().ok());
    in = *world.receiver->poll();
    world.loop.run_one_or_advance();
  }
  ASSERT_TRUE(in && in->rows.size() == 6000);
  ASSERT_TRUE(world.receiver->release(in->slot).ok());
  ++world.n_taken;
  ASSERT_TRUE(world.run(3, 6000)) << world.what_failed();
  EXPECT_EQ(world.sender->counters().rows_alone, 4u);
}

TEST(Link, SendsHeadersToWhoDoesNotKnowBetter) {
  LinkWorld world({.n_alike = 4});
  std::array<std::byte, 64> word{};
  const auto lane = world.answer_by_hand(word);
  for (std::uint64_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(world.sender->poll().ok());
    ASSERT_TRUE(*world.send(5000));
    EXPECT_EQ(world.memory[i * world.options.ring.slot_bytes], std::byte{'R'});
  }
}

TEST(Link, IsSilentOnItsConnectionWhileRdmaWorks) {
  LinkWorld world;
  ASSERT_TRUE(world.settle_link());
  ASSERT_TRUE(world.run(10, 1000));
  const std::uint64_t before = world.sender->counters().system_calls;
  ASSERT_TRUE(world.run(640, 1000));
  // Only looks for records now and then: some polls share one look.
  EXPECT_LE(world.sender->counters().system_calls - before, 640u);
}

TEST(Link, CarriesEverySizeIncludingInlineAndWithoutRows) {
  LinkWorld world;
  ASSERT_TRUE(world.settle_link());
  for (const std::uint32_t size : {0u, 1u, 50u, 150u, 256u, 1000u, 16'000u}) {
    SCOPED_TRACE(fmt::format("{} bytes", size));
    ASSERT_TRUE(world.run(20, size)) << world.what_failed();
  }
}

TEST(Link, HoldsBackWhatTheReceiverHasNoRoomFor) {
  LinkWorld world;
  ASSERT_TRUE(world.settle_link());
  world.hold_back = 2;
  ASSERT_TRUE(world.run(100, 3000)) << world.what_failed();
  EXPECT_LE(world.held.size(), 2u);
}

TEST(Link, NeverStallsWhateverTheRing) {
  for (std::uint32_t n_slots = 1; n_slots <= 9; ++n_slots) {
    SCOPED_TRACE(fmt::format("{} slots", n_slots));
    LinkWorld world({.ring = {.n_slots = n_slots, .slot_bytes = 4096}});
    ASSERT_TRUE(world.settle_link());
    ASSERT_TRUE(world.run(50, 500)) << world.what_failed();
  }
}

// As poll_until() does it: each end polls until nothing moves, arms, polls once more, and then only
// goes on when it was woken. A wake-up that is missing leaves both asleep.
TEST(Link, WakesWhoeverSleeps) {
  for (std::uint32_t n_slots = 1; n_slots <= 5; ++n_slots) {
    SCOPED_TRACE(fmt::format("{} slots", n_slots));
    LinkWorld world({.ring = {.n_slots = n_slots, .slot_bytes = 4096}});
    ASSERT_TRUE(world.settle_link());
    constexpr std::uint64_t kMessages = 200;
    bool sender_awake = true;
    bool receiver_awake = true;
    Rng rng(n_slots);
    for (int i = 0; world.n_taken < kMessages; ++i) {
      ASSERT_LT(i, 100'000) << "asleep for ever; " << world.what_failed();
      if (sender_awake) {
        for (int armed = 0; armed < 2;) {
          const bool moved = *world.sender->poll();
          const bool sent = world.sender->n_sent() < kMessages && *world.send(500);
          if (moved || sent) {
            armed = 0;
          } else if (++armed == 1) {
            world.sender->arm([&] { sender_awake = true; }, /*for_completions=*/true);
          }
        }
        sender_awake = false;
      }
      if (receiver_awake && rng.below(2) == 0) {
        for (int armed = 0; armed < 2;) {
          const std::uint64_t before = world.n_taken;
          ASSERT_TRUE(world.take()) << world.what_failed();
          if (world.n_taken != before) {
            armed = 0;
          } else if (++armed == 1) {
            world.receiver->arm([&] { receiver_awake = true; });
          }
        }
        receiver_awake = false;
      }
      world.loop.run_one_or_advance();
    }
    EXPECT_TRUE(world.intact);
  }
}

TEST(Link, StripesLongMessagesOverAllPorts) {
  LinkWorld world({.n_ports = 2});
  ASSERT_TRUE(world.settle_link());
  EXPECT_EQ(world.sender->transport(),
            "rdma a0/1 gid 1 (RoCEv2 10.0.0.1) mtu 4096 + a1/1 gid 1 (RoCEv2 10.1.0.1) mtu 4096");
  ASSERT_TRUE(world.run(100, 12'000)) << world.what_failed();
  EXPECT_EQ(world.sender->counters().posts, 200u);
  ASSERT_TRUE(world.run(100, 1000));  // Short ones are not worth it.
  EXPECT_EQ(world.sender->counters().posts, 300u);
  EXPECT_EQ(world.sender->counters().payload_copies, 0u);
}

TEST(Link, WorksWithoutImmediates) {
  LinkWorld world({.use_immediate = false});
  ASSERT_TRUE(world.settle_link());
  ASSERT_TRUE(world.run(200, 5000)) << world.what_failed();
  EXPECT_EQ(world.sender->counters().posts, 200u);     // WRITE and SEND,
  EXPECT_EQ(world.sender->counters().requests, 400u);  // still in one post.
}

TEST(Link, CutsMessagesThatACardCannotWriteAtOnce) {
  LinkWorld world({.limits = {.message_bytes_max = 4096}});
  ASSERT_TRUE(world.settle_link());
  ASSERT_TRUE(world.run(50, 15'000)) << world.what_failed();
  EXPECT_EQ(world.sender->counters().posts, 50u);
  EXPECT_GE(world.sender->counters().requests, 200u);
}

TEST(Link, SaysWhyItUsesTcp) {
  {
    LinkWorld world({.receiver_rdma = false});
    ASSERT_TRUE(world.settle_link());
    EXPECT_EQ(world.sender->transport(), "tcp, because the peer does not use RDMA");
    EXPECT_EQ(world.sender_lines.at(0), "link a->b: tcp, because the peer does not use RDMA");
    EXPECT_EQ(world.receiver_lines.at(0), "link a->b: tcp, because this end does not use RDMA");
    ASSERT_TRUE(world.run(20, 5000)) << world.what_failed();
  }
  {
    LinkWorld world({.sender_rdma = false});
    ASSERT_TRUE(world.settle_link());
    EXPECT_EQ(world.sender->transport(), "tcp, because this end does not use RDMA");
    ASSERT_TRUE(world.run(20, 5000)) << world.what_failed();
  }
  {
    LinkWorld world({.peer_knows_links = false});
    EXPECT_TRUE(world.sender->settled());
    EXPECT_NE(world.sender->transport().find("older recua"), std::string::npos);
    ASSERT_TRUE(world.run(20, 5000)) << world.what_failed();
  }
  {
    LinkWorld world({.limits = {.locked_bytes_max = 4096}});
    ASSERT_TRUE(world.settle_link());
    EXPECT_NE(world.sender->transport().find("tcp, because this end cannot use RDMA: "),
              std::string::npos)
        << world.sender->transport();
    ASSERT_TRUE(world.run(20, 5000)) << world.what_failed();
  }
}

TEST(Link, LeavesNothingBehind) {
  LinkWorld world({.n_ports = 2});
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(world.settle_link());
    ASSERT_TRUE(world.run(5, 9000));
    world.sender.reset();
    world.receiver.reset();
    EXPECT_EQ(world.fabric.counts(), net::verbs::FakeCounts{});
    auto [client, server] = world.connect();
    world.sender = make_link_sender({.env = world.a, .policy = &world.policy_a, .self = "a"},
                                    std::move(client), world.options.ring,
                                    {std::span(world.source)}, std::vector<std::uint32_t>{3});
    world.receiver = *make_link_receiver({.env = world.b, .policy = &world.policy_b, .self = "b"},
                                         std::move(server), LinkWorld::kId, world.options.ring,
                                         {.bytes = world.memory});
    world.n_taken = 0;
    world.held.clear();
  }
}

TEST(Pieces, CoverAMessageWithoutGaps) {
  for (const std::uint64_t bytes : {1ull, 63ull, 64ull, 1000ull, 4097ull, 1ull << 33}) {
    for (std::size_t n = 1; n <= kPiecesMax; ++n) {
      std::uint64_t at = 0;
      for (std::size_t p = 0; p < n; ++p) {
        const PieceRange range = piece_range(bytes, p, n);
        EXPECT_EQ(range.begin, std::min(at, bytes));
        at = range.end;
      }
      EXPECT_EQ(at, bytes);
    }
  }
}

TEST(PieceAnnouncement, ComesBackAndRefusesBitsThatMeanNothing) {
  for (std::uint8_t n = 1; n <= kPiecesMax; ++n) {
    for (std::uint8_t p = 0; p < n; ++p) {
      const PieceAnnouncement in{.sequence = 0xfeed,
                                 .piece = p,
                                 .n_pieces = n,
                                 .starving = p % 2 == 0,
                                 .rows_alone = n == 1};
      EXPECT_EQ(*decode_announcement(encode(in)), in);
    }
  }
  EXPECT_EQ(decode_announcement(1U << 24U).error().code, ErrorCode::kProtocol);
  EXPECT_EQ(decode_announcement(9U << 20U).error().code, ErrorCode::kProtocol);  // Rows of three.
  EXPECT_EQ(decode_announcement(1U << 31U).error().code, ErrorCode::kProtocol);
  EXPECT_EQ(decode_announcement(1U << 16U).error().code, ErrorCode::kProtocol);  // Piece 1 of 1.
}

}  // namespace
}  // namespace recua::rpc
