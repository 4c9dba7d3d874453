// Links whose peer breaks the rules: it is dropped with a sentence that says which.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "net/verbs/lane.h"
#include "rpc/link_record.h"
#include "rpc/link_world.h"
#include "rpc/tensor_header.h"
#include "rpc/verbs_path.h"

namespace recua::rpc {
namespace {

std::uint32_t announce(std::uint16_t sequence) { return encode(PieceAnnouncement{sequence}); }
std::uint32_t announce_rows(std::uint16_t sequence) {
  return encode(PieceAnnouncement{.sequence = sequence, .rows_alone = true});
}

/// A receiver against a peer that holds a working lane and writes what it likes.
struct HostileSender : TestWorld {
  explicit HostileSender(std::uint64_t window_factor = 1) : memory(4 * 4096) {
    fabric.add_device("a", "a0", {"10.0.0.1"});
    fabric.add_device("b", "b0", {"10.0.0.2"});
    provider_a = fabric.provider("a");
    provider_b = fabric.provider("b");
    policy.allow_rdma = true;
    policy.provider = provider_b.get();
    receiver = *make_link_receiver(
        {.env = b, .policy = &policy, .self = "b", .report = [](const std::string&) {}},
        std::move(server), LinkWorld::kId, {.n_slots = 4, .slot_bytes = 4096}, {.bytes = memory});
    const auto ports = *net::verbs::choose_ports(*provider_a->devices(), {}, "10.0.0.1");
    const std::array<std::span<std::byte>, 1> sources{std::span(source)};
    lane =
        *net::verbs::Lane::create(*provider_a, ports[0], window, sources, 1, {.inline_bytes = 0});
    wire::LinkOffer offer;
    offer.set_generation(1);
    offer.set_uncut_bytes(1 << 20);
    to_wire(lane->local(), *offer.add_lanes());
    say(RecordKind::kOffer, offer);
    EXPECT_TRUE(receiver->poll().ok());
    settle();
    std::array<std::byte, 4096> bytes;
    const std::size_t n = *client->try_read(bytes);
    const auto header = *decode_record_header(std::span(bytes).first<kRecordHeaderBytes>());
    wire::LinkAnswer answer;
    EXPECT_TRUE(
        parse_record(std::span(bytes).first(n).subspan(kRecordHeaderBytes), "b", answer).ok());
    EXPECT_EQ(header.kind, RecordKind::kAnswer);
    EXPECT_EQ(answer.lanes_size(), 1);
    address = *from_wire(answer.lanes(0).lane());
    address.window_bytes *= window_factor;
    EXPECT_TRUE(lane->connect(address).ok());
    wire::LinkReady ready;
    ready.set_generation(1);
    say(RecordKind::kReady, ready);
  }
  void say(RecordKind kind, const google::protobuf::MessageLite& message) {
    const auto bytes = encode_record(kind, message);
    EXPECT_TRUE(loop.run(client->write(bytes)).ok());
    settle();
  }
  /// A message with this header, of which `bytes` are written at `offset`.
  void write(TensorHeader header, std::uint64_t offset, std::size_t bytes, std::uint32_t value) {
    const auto head = encode(header);
    std::copy(head.begin(), head.end(), source.begin());
    write_raw(offset, bytes, value);
  }
  void write_raw(std::uint64_t offset, std::size_t bytes, std::uint32_t value) {
    const std::array<std::span<const std::byte>, 1> parts{
        std::span<const std::byte>(source).first(bytes)};
    EXPECT_TRUE(
        *lane->write({.offset = offset, .parts = parts, .announce = value, .signal = true}));
  }
  /// A message of 100 bytes of rows, alone or not.
  void send_next(std::uint16_t sequence, bool rows_alone) {
    const std::uint64_t at = sequence % 4 * 4096;
    if (rows_alone) return write_raw(at + 64, 100, announce_rows(sequence));
    write(header(sequence, 100), at, 164, announce(sequence));
  }
  static TensorHeader header(std::uint64_t sequence, std::uint32_t row_bytes) {
    TensorHeader out{.session = LinkWorld::kId.session, .epoch = LinkWorld::kId.epoch};
    out.sequence = sequence;
    out.n_rows = 1;
    out.row_bytes = row_bytes;
    return out;
  }
  /// Whether what it writes from here on does not land.
  bool is_refused() {
    const std::array<std::span<const std::byte>, 1> parts{
        std::span<const std::byte>(source).first(64)};
    if (!lane->write({.offset = 0, .parts = parts, .announce = {}, .signal = true}).ok())
      return true;
    std::vector<net::verbs::Announcement> none;
    lane->poll(none);
    return lane->failure().has_value();
  }
  std::string failure() {
    for (int i = 0; i < 3; ++i) {
      const auto polled = receiver->poll();
      if (polled.ok()) continue;
      EXPECT_EQ(polled.error().code, ErrorCode::kProtocol);
      EXPECT_NE(polled.error().message.find("a:"), std::string::npos) << polled.error().message;
      EXPECT_TRUE(is_refused());
      lane.reset();
      EXPECT_EQ(fabric.counts_in_the_end(), net::verbs::FakeCounts{});
      return polled.error().message;
    }
    ADD_FAILURE() << "the receiver did not notice";
    return "";
  }

  net::verbs::FakeFabric fabric;
  std::unique_ptr<net::verbs::Provider> provider_a;
  std::unique_ptr<net::verbs::Provider> provider_b;
  LinkPolicy policy;
  std::vector<std::byte> memory;
  std::array<std::byte, 64> window{};
  std::array<std::byte, 8192> source{};
  std::unique_ptr<ChannelReceiver> receiver;
  std::unique_ptr<net::verbs::Lane> lane;
  net::verbs::LaneAddress address;
};

TEST(HostileSender, IsHeardWhenItBehaves) {
  HostileSender world;
  world.write(HostileSender::header(0, 100), 0, 164, announce(0));
  const auto in = world.receiver->poll();
  ASSERT_TRUE(in.ok()) << in.error().message;
  ASSERT_NE(*in, nullptr);
  EXPECT_EQ((*in)->rows.size(), 100u);
}

TEST(HostileSender, IsDroppedForASlotThatItDoesNotHold) {
  HostileSender world;
  world.write(HostileSender::header(4, 100), 0, 164, announce(4));  // The fifth of four.
  EXPECT_NE(world.failure().find("announced message 4, whose slot it does not hold"),
            std::string::npos);
}

TEST(HostileSender, IsDroppedForAnAnnouncementOfThePast) {
  HostileSender world;
  world.write(HostileSender::header(0, 100), 0, 164, announce(0xffff));
  EXPECT_NE(world.failure().find("announced message"), std::string::npos);
}

TEST(HostileSender, IsDroppedForALengthBeyondTheSlot) {
  HostileSender world;
  world.write(HostileSender::header(0, 5000), 0, 164, announce(0));
  EXPECT_NE(world.failure().find("a slot has 4096"), std::string::npos);
}

TEST(HostileSender, IsDroppedForLengthsThatOverflow) {
  HostileSender world;
  TensorHeader header = HostileSender::header(0, 0xffffffff);
  header.n_rows = header.descriptor_bytes = 0xffffffff;
  world.write(header, 0, 164, announce(0));
  EXPECT_NE(world.failure().find("a slot has 4096"), std::string::npos);
}

TEST(HostileSender, IsDroppedForWritingLessOrMoreThanItSays) {
  for (const std::size_t bytes : {64u, 163u, 165u, 4000u}) {
    HostileSender world;
    world.write(HostileSender::header(0, 100), 0, bytes, announce(0));
    EXPECT_NE(world.failure().find("whose header says 164"), std::string::npos);
  }
}

TEST(HostileSender, IsDroppedForAnEmptyWrite) {
  HostileSender world;
  world.write_raw(0, 0, announce(0));
  EXPECT_NE(world.failure().find("magic"), std::string::npos);
}

TEST(HostileSender, IsDroppedForDataWithoutHeader) {
  HostileSender world;
  world.source.fill(std::byte{0xee});
  world.write_raw(0, 164, announce(0));
  EXPECT_NE(world.failure().find("magic at byte 0 is eeeeeeee"), std::string::npos);
}

TEST(HostileSender, IsDroppedForAnOldHeaderInANewSlot) {
  HostileSender world;
  for (std::uint16_t i = 0; i < 4; ++i) {
    world.write(HostileSender::header(i, 100), i * 4096, 164, announce(i));
    auto in = world.receiver->poll();
    ASSERT_TRUE(in.ok() && *in != nullptr);
    ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
  }
  world.write_raw(64, 100, announce(4));  // Rows only: the header is that of message 0.
  EXPECT_NE(world.failure().find("sequence 0, expected 4"), std::string::npos);
}

TEST(HostileSender, MayLeaveOutWhatFollows) {
  HostileSender world;
  for (std::uint16_t i = 0; i < 12; ++i) {
    world.send_next(i, i % 5 != 0);
    const auto in = world.receiver->poll();
    ASSERT_TRUE(in.ok()) << in.error().message;
    ASSERT_NE(*in, nullptr);
    EXPECT_EQ((*in)->header.sequence, i);
    EXPECT_EQ((*in)->header.step, i % 5);
    EXPECT_EQ((*in)->rows.size(), 100u);
    ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
  }
}

/// The connection is not in order with the lane: its message may be in the slot before already.
TEST(HostileSender, MayLeaveOutWhatFollowsThoughTheSlotBeforeIsFilledAgain) {
  HostileSender world;
  const auto take = [&](std::uint64_t sequence) {
    const auto in = world.receiver->poll();
    ASSERT_TRUE(in.ok()) << in.error().message;
    ASSERT_NE(*in, nullptr);
    EXPECT_EQ((*in)->header.sequence, sequence);
    ASSERT_TRUE(world.receiver->release((*in)->slot).ok());
  };
  for (std::uint16_t i = 0; i < 4; ++i) {
    world.send_next(i, i != 0);
    take(i);
  }
  ASSERT_TRUE(world.receiver->poll().ok());  // Tells the credits.
  const std::vector<std::byte> rows(100);
  const auto head = encode(HostileSender::header(7, 100));
  EXPECT_TRUE(world.loop.run(world.client->write(head)).ok());
  EXPECT_TRUE(world.loop.run(world.client->write(rows)).ok());
  world.settle();
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(world.receiver->poll().ok());  // It looks now and then.
  for (std::uint16_t i = 4; i < 7; ++i) {
    world.send_next(i, true);
    take(i);
  }
  take(7);
  world.send_next(8, true);  // After one that the lane did not bring.
  EXPECT_NE(world.failure().find("rows alone for message 8"), std::string::npos);
}

TEST(HostileSender, IsDroppedForRowsAloneWhoseHeaderDoesNotFollow) {
  {
    HostileSender world;  // The first of all.
    world.write_raw(64, 100, announce_rows(0));
    EXPECT_NE(world.failure().find("rows alone for message 0"), std::string::npos);
  }
  {
    HostileSender world;  // After one that has not come.
    world.write_raw(4096 + 64, 100, announce_rows(1));
    EXPECT_NE(world.failure().find("rows alone for message 1"), std::string::npos);
  }
  {
    HostileSender world;  // Rows of which there are none.
    TensorHeader empty = HostileSender::header(0, 0);
    empty.n_rows = 0;
    world.write(empty, 0, 64, announce(0));
    ASSERT_NE(*world.receiver->poll(), nullptr);
    world.write_raw(4096 + 64, 0, announce_rows(1));
    EXPECT_NE(world.failure().find("rows alone for message 1"), std::string::npos);
  }
  for (const std::size_t bytes : {0u, 99u, 101u, 164u, 4000u}) {
    HostileSender world;
    world.write(HostileSender::header(0, 100), 0, 164, announce(0));
    ASSERT_NE(*world.receiver->poll(), nullptr);
    world.write_raw(4096 + 64, bytes, announce_rows(1));
    EXPECT_NE(world.failure().find("for message 1, whose header says 100"), std::string::npos);
  }
}

TEST(HostileSender, IsDroppedForBitsThatMeanNothing) {
  HostileSender world;
  world.write(HostileSender::header(0, 100), 0, 164, 0x80000000);
  EXPECT_NE(world.failure().find("bits are set that mean nothing"), std::string::npos);
}

TEST(HostileSender, IsDroppedForWritingOutsideOfTheRing) {
  // Its lane believes that the window is twice as large, so that the card has to refuse.
  HostileSender world(2);
  world.write(HostileSender::header(0, 100), 5 * 4096, 164, announce(0));
  world.receiver->arm([] {});  // After waking up the device's events are looked at.
  EXPECT_NE(world.failure().find("b0/1"), std::string::npos);
}

TEST(HostileSender, IsDroppedForASecondHelloHoweverShort) {
  HostileSender world;
  constexpr std::string_view kHello("RCUA\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x08\x01",
                                    18);
  const std::span<const std::byte> bytes = as_bytes(kHello);
  EXPECT_TRUE(world.loop.run(world.client->write(bytes)).ok());
  world.settle();
  bool dropped = false;
  for (int i = 0; i < 200 && !dropped; ++i) {
    const auto polled = world.receiver->poll();
    dropped = !polled.ok();
    if (dropped) {
      EXPECT_NE(polled.error().message.find("magic at byte 0 is 52435541"), std::string::npos);
    }
  }
  EXPECT_TRUE(dropped);
}

TEST(HostileSender, IsDroppedForRecordsOutOfTurn) {
  const auto failure = [](RecordKind kind, const google::protobuf::MessageLite& message) {
    HostileSender world;
    world.say(kind, message);
    for (int i = 0; i < 200; ++i) {
      const auto polled = world.receiver->poll();
      if (!polled.ok()) return polled.error().message;
    }
    return std::string();
  };
  wire::LinkOffer again;
  again.set_generation(1);
  EXPECT_NE(failure(RecordKind::kOffer, again).find("offer 1 came after offer 1"),
            std::string::npos);
  wire::LinkOffer second;
  second.set_generation(2);
  EXPECT_NE(failure(RecordKind::kOffer, second).find("while the path of offer 1 was open"),
            std::string::npos);
  wire::LinkReady ready;
  ready.set_generation(9);
  EXPECT_NE(failure(RecordKind::kReady, ready).find("ready for offer 9"), std::string::npos);
  wire::LinkFence fence;
  fence.set_generation(9);
  EXPECT_NE(failure(RecordKind::kFence, fence).find("fence for offer 9"), std::string::npos);
  EXPECT_NE(failure(RecordKind::kAnswer, wire::LinkAnswer()).find("does not belong here"),
            std::string::npos);
}

TEST(HostileReceiver, IsDroppedForForgedCredits) {
  // A sender against a peer that answers by hand and writes its own number into the credit word.
  for (const std::uint64_t forged : {2ull, 5ull, ~0ull}) {
    SCOPED_TRACE(fmt::format("{}", forged));
    LinkWorld world;
    std::array<std::byte, 64> word{};
    std::memcpy(word.data(), &forged, sizeof(forged));
    const auto lane = world.answer_by_hand(word);
    ASSERT_TRUE(world.sender->poll().ok());
    ASSERT_TRUE(world.sender->settled());
    ASSERT_TRUE(*world.send(1000));
    const std::array<std::span<const std::byte>, 1> parts{
        std::span<const std::byte>(word).first(8)};
    ASSERT_TRUE(*lane->write({.offset = 0, .parts = parts, .announce = {}}));
    const Result<bool> polled = world.sender->poll();
    ASSERT_FALSE(polled.ok());
    EXPECT_EQ(polled.error().code, ErrorCode::kProtocol);
    EXPECT_NE(polled.error().message.find(fmt::format("wrote that it released {} slots", forged)),
              std::string::npos)
        << polled.error().message;
  }
}

}  // namespace
}  // namespace recua::rpc
