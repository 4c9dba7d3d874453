// Links that break: whatever fails, every message arrives once, in order and intact, or the channel
// ends with an error that says why.
#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "net/verbs/lane.h"
#include "rpc/link_record.h"
#include "rpc/link_world.h"
#include "rpc/tensor_header.h"
#include "rpc/verbs_path.h"

namespace recua::rpc {
namespace {

using net::verbs::EventKind;
using net::verbs::Status;

/// Runs half of the messages, breaks something, and runs the rest.
void expect_survives(LinkWorld& world, std::uint32_t size, const std::function<void()>& fault) {
  ASSERT_TRUE(world.settle_link()) << world.what_failed();
  ASSERT_TRUE(world.run(10, size)) << world.what_failed();
  // With some under way.
  for (int i = 0; i < 20 && world.sender->credits() < 2; ++i) ASSERT_TRUE(world.step());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(*world.send(size)) << world.what_failed();
  fault();
  ASSERT_TRUE(world.run(60, size)) << world.what_failed();
  EXPECT_EQ(world.sender->n_sent(), world.n_taken);
}

TEST(LinkFailure, GoesOnOverTcpWhateverStatusAWriteEndsWith) {
  for (int s = 1; s < net::verbs::kStatusCount; ++s) {
    const auto status = static_cast<Status>(s);
    SCOPED_TRACE(std::string(to_string(status)));
    LinkWorld world;
    expect_survives(world, 5000, [&] { world.fabric.fail_sends("a0", status); });
    EXPECT_EQ(world.sender->counters().failovers, 1u);
    EXPECT_NE(world.sender_lines.at(1).find("going on over tcp"), std::string::npos)
        << world.sender_lines.at(1);
    EXPECT_NE(world.sender_lines.at(1).find(to_string(status)), std::string::npos);
    EXPECT_EQ(world.fabric.counts_in_the_end(), net::verbs::FakeCounts{});
  }
}

TEST(LinkFailure, GoesOnOverTcpWhateverStatusAReceiveEndsWith) {
  for (int s = 1; s < net::verbs::kStatusCount; ++s) {
    const auto status = static_cast<Status>(s);
    SCOPED_TRACE(std::string(to_string(status)));
    // A SEND longer than any announcement can only come from a broken peer.
    if (status == Status::kLocalLength) continue;
    LinkWorld world;
    expect_survives(world, 5000, [&] { world.fabric.fail_receives("b0", status); });
    EXPECT_GE(world.sender->counters().failovers, 1u);
  }
}

TEST(LinkFailure, SurvivesPortsAndDevicesThatGo) {
  const std::vector<std::pair<std::string, std::function<void(LinkWorld&)>>> faults = {
      {"the sender's port goes down", [](LinkWorld& w) { w.fabric.set_port_up("a0", false); }},
      {"the receiver's port goes down", [](LinkWorld& w) { w.fabric.set_port_up("b0", false); }},
      {"packets vanish", [](LinkWorld& w) { w.fabric.set_silent("b0", true); }},
      {"the sender's GID changes", [](LinkWorld& w) { w.fabric.change_gid("a0", 1, "10.0.0.77"); }},
      {"the receiver's GID changes",
       [](LinkWorld& w) { w.fabric.change_gid("b0", 1, "10.0.0.77"); }},
      {"the sender's device is removed", [](LinkWorld& w) { w.fabric.remove_device("a0"); }},
      {"the receiver's device is removed", [](LinkWorld& w) { w.fabric.remove_device("b0"); }},
      {"the sender's device fails",
       [](LinkWorld& w) { w.fabric.raise("a0", {.kind = EventKind::kDeviceFatal}); }},
  };
  for (const auto& [name, fault] : faults) {
    SCOPED_TRACE(name);
    LinkWorld world;
    expect_survives(world, 5000, [&, &act = fault] { act(world); });
    EXPECT_FALSE(world.sender_error || world.receiver_error) << world.what_failed();
  }
}

/// A kernel may take seconds to end a queue pair whose link is down.
TEST(LinkFailure, GoesOnWhileLanesTakeLongToEnd) {
  for (const bool flushes : {true, false}) {
    for (const int n_ports : {1, 2}) {
      SCOPED_TRACE(fmt::format("{} ports, {}", n_ports, flushes));
      net::verbs::FakeLimits limits;
      limits.flushes = flushes;  // Not given back by rxe either, then.
      LinkWorld world({.n_ports = n_ports, .limits = limits});
      world.fabric.hold_ends(true);
      expect_survives(world, 12'000, [&] { world.fabric.set_port_up("a0", false); });
      const std::size_t n_lanes = 2 * static_cast<std::size_t>(n_ports);
      EXPECT_GE(world.fabric.counts().queue_pairs, n_lanes);
      world.fabric.hold_ends(false);
      world.sender.reset();
      world.receiver.reset();
      EXPECT_EQ(world.fabric.counts(), net::verbs::FakeCounts{});
    }
  }
}

TEST(LinkFailure, LosesOnlyBandwidthWhenOneOfTwoPortsDies) {
  for (const char* device : {"a0", "a1", "b0", "b1"}) {
    SCOPED_TRACE(device);
    LinkWorld world({.n_ports = 2});
    // It stays away: trying again must find the same.
    expect_survives(world, 12'000, [&] { world.fabric.set_port_up(device, false); });
    EXPECT_EQ(world.sender->transport().find("tcp"), std::string::npos)
        << world.sender->transport();
    EXPECT_NE(world.sender_lines.at(1).find("going on over rdma a"), std::string::npos)
        << world.sender_lines.at(1);
  }
}

TEST(LinkFailure, UsesTcpWhenBothPortsDieOneAfterTheOther) {
  LinkWorld world({.n_ports = 2});
  expect_survives(world, 12'000, [&] { world.fabric.set_port_up("a0", false); });
  world.fabric.set_port_up("b1", false);
  ASSERT_TRUE(world.run(50, 12'000)) << world.what_failed();
  EXPECT_NE(world.sender->transport().find("tcp, because"), std::string::npos);
}

TEST(LinkFailure, UsesRdmaAgainWhenItIsBack) {
  for (const int n_ports : {1, 2}) {
    SCOPED_TRACE(fmt::format("{} ports", n_ports));
    LinkWorld world({.n_ports = n_ports});
    expect_survives(world, 9000, [&] { world.fabric.set_port_up("a0", false); });
    world.fabric.set_port_up("a0", true);
    world.loop.run_for(std::chrono::minutes(3));
    ASSERT_TRUE(world.run(50, 9000)) << world.what_failed();
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(world.step()) << world.what_failed();
    ASSERT_TRUE(world.settle_link()) << world.what_failed();
    ASSERT_TRUE(world.run(50, 9000)) << world.what_failed();
    EXPECT_NE(world.sender->transport().find("rdma a0/1"), std::string::npos)
        << fmt::format("{}", fmt::join(world.sender_lines, "\n"));
    if (n_ports == 2) {
      EXPECT_NE(world.sender->transport().find("a1/1"), std::string::npos);
    }
    EXPECT_EQ(world.sender_lines.back().find("tcp"), std::string::npos);
  }
}

// Random faults at random moments, deliveries held back by the fabric, slots held back by the
// receiver. The seed is all that is needed to see a failure again.
TEST(LinkFailure, SurvivesRandomFaults) {
  std::uint64_t n_rows_alone = 0;
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    LinkWorld world(
        {.ring = {.n_slots = static_cast<std::uint32_t>(1 + rng.below(6)), .slot_bytes = 16 * 1024},
         .n_ports = static_cast<int>(1 + rng.below(3)),
         .stripe_bytes_min = 2000,
         .use_immediate = rng.below(4) != 0,
         .n_alike = 1 + rng.below(5),
         .seed = seed});
    ASSERT_TRUE(world.settle_link()) << world.what_failed();
    const bool holding = rng.below(2) == 0;
    world.fabric.hold(holding);
    constexpr std::uint64_t kMessages = 300;
    std::uint32_t size = 0;
    for (int i = 0; world.n_taken < kMessages; ++i) {
      ASSERT_LT(i, 300'000) << "stuck; " << world.what_failed() << "; "
                            << world.sender->transport();
      if (holding) world.fabric.release(static_cast<int>(rng.below(3)));
      if (world.sender->n_sent() < kMessages && rng.below(2) == 0) {
        if (world.sender->n_sent() % world.options.n_alike == 0)
          size = static_cast<std::uint32_t>(rng.below(15'000));
        const Result<bool> sent = world.send(size);
        ASSERT_TRUE(sent.ok()) << sent.error().message;
      }
      if (rng.below(60) == 0) {
        const auto port = rng.below(static_cast<std::uint64_t>(world.options.n_ports));
        const std::string device = (rng.below(2) == 0 ? "a" : "b") + std::to_string(port);
        switch (rng.below(4)) {
          case 0:
            world.fabric.set_port_up(device, false);
            break;
          case 1:
          case 2:
            for (int k = 0; k < world.options.n_ports; ++k) {
              world.fabric.set_port_up("a" + std::to_string(k), true);
              world.fabric.set_port_up("b" + std::to_string(k), true);
            }
            break;
          default:
            world.fabric.fail_sends(device, static_cast<Status>(1 + rng.below(14)));
        }
      }
      world.hold_back = rng.below(world.options.ring.n_slots);
      ASSERT_TRUE(world.step()) << world.what_failed();
    }
    EXPECT_TRUE(world.intact);
    n_rows_alone += world.sender->counters().rows_alone;
    world.sender.reset();
    world.receiver.reset();
    EXPECT_EQ(world.fabric.counts(), net::verbs::FakeCounts{});
  }
  EXPECT_GT(n_rows_alone, 1000u);
}

TEST(LinkFailure, EndsTheChannelWhenTheConnectionEnds) {
  LinkWorld world;
  ASSERT_TRUE(world.settle_link());
  ASSERT_TRUE(world.run(5, 1000));
  world.network.cut("a", "b");
  for (int i = 0; i < 1000 && (!world.sender_error || !world.receiver_error); ++i) world.step();
  ASSERT_TRUE(world.sender_error && world.receiver_error);
  EXPECT_EQ(world.sender_error->code, ErrorCode::kUnavailable);
  EXPECT_EQ(world.receiver_error->code, ErrorCode::kUnavailable);
  EXPECT_EQ(world.fabric.counts_in_the_end(), net::verbs::FakeCounts{});
}

// The receiver's lane is connected before the sender's: until the sender has said that it is ready,
// nothing may be written back, or the write finds nobody.
TEST(LinkFailure, TellsNoCreditsBeforeTheSenderIsConnected) {
  LinkWorld world;
  world.fabric.set_port_up("a0", false);
  ASSERT_TRUE(world.settle_link());  // On the connection.
  world.hold_back = 3;
  ASSERT_TRUE(world.run(10, 2000)) << world.what_failed();
  world.fabric.set_port_up("a0", true);
  world.loop.run_for(std::chrono::minutes(1));
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(world.sender->poll().ok());
  world.settle();  // The offer is there.
  world.hold_back = 0;
  ASSERT_TRUE(world.run(50, 2000)) << world.what_failed();
  EXPECT_EQ(world.sender->transport().find("tcp"), std::string::npos) << world.sender->transport();
  EXPECT_EQ(world.receiver->counters().failovers, 0u);
}

// A device that cannot be opened now is a reason for TCP, and worth another try later.
TEST(LinkFailure, WaitsForABusyDevice) {
  LinkWorld world;
  world.fabric.set_busy("b0", true);
  ASSERT_TRUE(world.settle_link());
  EXPECT_NE(world.sender->transport().find("tcp, because the peer cannot use RDMA"),
            std::string::npos)
      << world.sender->transport();
  ASSERT_TRUE(world.run(10, 2000)) << world.what_failed();
  world.fabric.set_busy("b0", false);
  world.loop.run_for(std::chrono::minutes(1));
  ASSERT_TRUE(world.run(50, 2000)) << world.what_failed();
  ASSERT_TRUE(world.settle_link());
  EXPECT_EQ(world.sender->transport().find("tcp"), std::string::npos) << world.sender->transport();
}

TEST(LinkFailure, GivesUpWaitingForAnAnswer) {
  LinkWorld world;
  ASSERT_TRUE(world.sender->poll().ok());
  world.loop.run_for(std::chrono::seconds(11));
  ASSERT_TRUE(world.sender->poll().ok());
  EXPECT_TRUE(world.sender->settled());
  EXPECT_NE(world.sender->transport().find("did not answer the offer within 10 s"),
            std::string::npos)
      << world.sender->transport();
  ASSERT_TRUE(world.run(20, 3000)) << world.what_failed();
}

TEST(LinkFailure, EndsTheChannelWhenAFenceIsNotConfirmed) {
  LinkWorld world;
  ASSERT_TRUE(world.settle_link());
  world.fabric.fail_sends("a0", Status::kRetryExceeded);
  ASSERT_TRUE(*world.send(5000));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(world.sender->poll().ok());
  world.loop.run_for(std::chrono::seconds(11));
  const Result<bool> polled = world.sender->poll();
  ASSERT_FALSE(polled.ok());
  EXPECT_EQ(polled.error().code, ErrorCode::kTimeout);
  EXPECT_NE(polled.error().message.find("retry exceeded"), std::string::npos);
}

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
  ASSERT_TRUE(in->has_value());
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
    ASSERT_TRUE(in.ok() && in->has_value());
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
    ASSERT_TRUE(in->has_value());
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
    ASSERT_TRUE(in->has_value());
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
    ASSERT_TRUE(world.receiver->poll()->has_value());
    world.write_raw(4096 + 64, 0, announce_rows(1));
    EXPECT_NE(world.failure().find("rows alone for message 1"), std::string::npos);
  }
  for (const std::size_t bytes : {0u, 99u, 101u, 164u, 4000u}) {
    HostileSender world;
    world.write(HostileSender::header(0, 100), 0, 164, announce(0));
    ASSERT_TRUE(world.receiver->poll()->has_value());
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
    ASSERT_TRUE(world.sender->poll().ok());
    world.settle();
    const auto offered = world.offer_by_hand();
    const auto ports = *net::verbs::choose_ports(*world.provider_b->devices(), {}, "10.0.0.2");
    std::array<std::byte, 64> word{};
    std::memcpy(word.data(), &forged, sizeof(forged));
    const std::array<std::span<std::byte>, 1> sources{std::span(word)};
    auto lane =
        *net::verbs::Lane::create(*world.provider_b, ports[0], world.memory, sources, 1, {});
    ASSERT_TRUE(lane->connect(offered).ok());
    wire::LinkAnswer answer;
    answer.set_generation(1);
    to_wire(lane->local(), *answer.add_lanes()->mutable_lane());
    world.say_to_sender(RecordKind::kAnswer, answer);
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
