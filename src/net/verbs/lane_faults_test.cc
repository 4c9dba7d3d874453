// How lanes begin and how they end: refused set-up, failed completions, events, hostile peers, the
// fence.
#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "net/verbs/lane.h"
#include "net/verbs/lane_test_peer.h"

namespace recua::net::verbs {
namespace {

const std::string kNameA = "rdma fa/1 -> 10.0.0.2: ";
const std::string kNameB = "rdma fb/1 -> 10.0.0.1: ";

// ---- Set-up -------------------------------------------------------------------------------------

TEST_F(LaneTest, TellsThePeerWhereToWrite) {
  a_.create({}, 1);
  const LaneAddress& local = a_.lane->local();
  EXPECT_EQ(describe(local.port), "fa/1 gid 1 (RoCEv2 10.0.0.1)");
  EXPECT_EQ(local.window_address, reinterpret_cast<std::uint64_t>(a_.window.data()));
  EXPECT_EQ(local.window_bytes, a_.window.size());
  EXPECT_EQ(local.port.mtu_bytes, 4096U);
}

TEST_F(LaneTest, StartsAtRandomPacketNumbersOf24Bits) {
  std::vector<std::uint32_t> seen;
  for (std::uint64_t randomness = 0; randomness < 20; ++randomness) {
    a_.create({}, randomness);
    EXPECT_LE(a_.lane->local().psn, 0xffffffU);
    seen.push_back(a_.lane->local().psn);
  }
  std::ranges::sort(seen);
  EXPECT_EQ(std::ranges::adjacent_find(seen), seen.end());
  EXPECT_GT(seen.back(), 0x800000U);
}

TEST_F(LaneTest, ReadsTheInlineSizeBack) {
  FakeLimits limits;
  for (const auto& [most, expected] :
       {std::pair{220U, 128U}, {256U, 256U}, {100U, 64U}, {16U, 16U}, {0U, 0U}}) {
    limits.inline_bytes_max = most;
    fabric_.set_limits("fa", limits);
    a_.create({.inline_bytes = 256});
    EXPECT_EQ(a_.lane->inline_bytes_max(), expected) << most;
  }
}

TEST_F(LaneTest, UsesTheSmallerMtu) {
  a_.create();
  b_.create({}, 2);
  LaneAddress remote = b_.lane->local();
  remote.port.mtu_bytes = 1024;
  ASSERT_TRUE(a_.lane->connect(remote).ok());
  EXPECT_EQ(a_.lane->mtu_bytes(), 1024U);
}

TEST_F(LaneTest, SaysWhyItCannotBeCreatedAndLeavesNothingBehind) {
  const auto refusal = [&] {
    const auto created = a_.try_create();
    EXPECT_EQ(fabric_.counts(), FakeCounts{});
    return created.ok()
               ? std::string("created")
               : fmt::format("{}: {}", to_string(created.error().code), created.error().message);
  };
  const auto ports = choose_ports(*a_.provider->devices(), {}, "");
  ASSERT_TRUE(ports.ok());
  const auto refusal_of_old_port = [&] {
    const auto created = Lane::create(*a_.provider, ports->front(), a_.window, {}, 1, {});
    EXPECT_EQ(fabric_.counts(), FakeCounts{});
    return created.ok()
               ? std::string("created")
               : fmt::format("{}: {}", to_string(created.error().code), created.error().message);
  };
  fabric_.set_busy("fa", true);
  EXPECT_EQ(refusal(), "resource exhausted: fa: ibv_open_device: Device or resource busy");
  fabric_.set_busy("fa", false);

  FakeLimits limits;
  limits.locked_bytes_max = 100'000;  // The window, but not the source besides.
  fabric_.set_limits("fa", limits);
  const std::string message = refusal();
  EXPECT_TRUE(message.starts_with("resource exhausted: fa: cannot lock 65536 bytes of memory"))
      << message;
  EXPECT_NE(message.find("the limit is 100000: raise it with \"ulimit -l unlimited\""),
            std::string::npos)
      << message;
  fabric_.set_limits("fa", {});

  fabric_.set_port_up("fa", false);
  EXPECT_EQ(refusal_of_old_port(), "unavailable: rdma fa/1: the port is not active any more");
  fabric_.set_port_up("fa", true);
  fabric_.change_gid("fa", 1, "10.0.0.77");
  EXPECT_EQ(refusal_of_old_port(), "unavailable: rdma fa/1: GID 1 is not 10.0.0.1 any more");
  fabric_.remove_device("fa");
  EXPECT_EQ(refusal_of_old_port(), "not found: there is no RDMA device \"fa\", only: none");
}

struct BadAddress {
  const char* name;
  void (*change)(LaneAddress&);
  const char* message;
};
class LaneAddressTest : public LaneTest, public ::testing::WithParamInterface<BadAddress> {};

TEST_P(LaneAddressTest, IsRefusedAsABreachOfTheProtocol) {
  a_.create();
  b_.create({}, 2);
  LaneAddress remote = b_.lane->local();
  GetParam().change(remote);
  const auto connected = a_.lane->connect(remote);
  ASSERT_FALSE(connected.ok());
  EXPECT_EQ(connected.error().code, ErrorCode::kProtocol);
  EXPECT_EQ(connected.error().message, std::string("rdma fa/1: ") + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Values, LaneAddressTest,
    ::testing::Values(
        BadAddress{"QueuePairOfManagement", [](LaneAddress& a) { a.qp_number = 1; },
                   "the peer's lane has queue pair number 1, need 2 to 16777215"},
        BadAddress{"QueuePairOf25Bits", [](LaneAddress& a) { a.qp_number = 1 << 24; },
                   "the peer's lane has queue pair number 16777216, need 2 to 16777215"},
        BadAddress{"PacketNumberOf25Bits", [](LaneAddress& a) { a.psn = 1 << 24; },
                   "the peer's lane has first packet number 16777216, need at most 16777215"},
        BadAddress{"NoWindow", [](LaneAddress& a) { a.window_bytes = 0; },
                   "the peer's lane has window bytes 0, need at least 1"},
        BadAddress{"NoKey", [](LaneAddress& a) { a.window_rkey = 0; },
                   "the peer's lane has window key 0, need another one"},
        BadAddress{"NoAddress",
                   [](LaneAddress& a) {
                     a.window_address = 0;
                     a.window_bytes = 64;
                   },
                   "the peer's window of 64 bytes at address 0x0 is outside of any memory"},
        BadAddress{"WindowAroundTheEnd",
                   [](LaneAddress& a) {
                     a.window_address = UINT64_MAX - 62;
                     a.window_bytes = 64;
                   },
                   "the peer's window of 64 bytes at address 0xffffffffffffffc1 is outside of any "
                   "memory"},
        BadAddress{"OddMtu", [](LaneAddress& a) { a.port.mtu_bytes = 1500; },
                   "the peer's lane has MTU 1500, need 256, 512, 1024, 2048 or 4096"},
        BadAddress{"OtherLinkLayer",
                   [](LaneAddress& a) { a.port.link_layer = LinkLayer::kInfiniBand; },
                   "the peer's lane is not of the kind that was agreed: the peer's fb/1 is "
                   "InfiniBand, ours is Ethernet"},
        BadAddress{"OtherTransport", [](LaneAddress& a) { a.port.transport = Transport::kIwarp; },
                   "the peer's lane is not of the kind that was agreed: the peer's fb/1 is iWARP, "
                   "ours is not"},
        BadAddress{"NoGid", [](LaneAddress& a) { a.port.gid = {}; },
                   "the peer's lane has the address ::, which is none of a host"},
        BadAddress{"MulticastGid", [](LaneAddress& a) { a.port.gid[0] = std::byte{0xff}; },
                   "the peer's lane has the address ff00::ffff:a00:2, which is none of a host"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_F(LaneTest, PassesOnThatTheDeviceRefusedToConnect) {
  a_.create();
  b_.create({}, 2);
  LaneAddress remote = b_.lane->local();
  remote.port.gid[15] = std::byte{99};
  const auto connected = a_.lane->connect(remote);
  ASSERT_FALSE(connected.ok());
  EXPECT_EQ(connected.error().code, ErrorCode::kIo);
  EXPECT_EQ(connected.error().message,
            "fa: ibv_modify_qp: Connection timed out: no host has that address");
  EXPECT_FALSE(a_.write(0, 8, 1).ok());
}

TEST_F(LaneTest, WritesNothingBeforeItIsConnected) {
  a_.create();
  const auto written = a_.write(0, 8, 1);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().message, "rdma fa/1: the lane is not connected yet");
}

// ---- Failed completions -------------------------------------------------------------------------

class LaneStatusTest : public LaneTest, public ::testing::WithParamInterface<int> {
 protected:
  [[nodiscard]] static Status status() { return static_cast<Status>(GetParam()); }
};

TEST_P(LaneStatusTest, OfASendEndsTheLane) {
  connect({.signal_every = 8});
  ASSERT_TRUE(a_.writes(0, 500, 1, true));
  fabric_.fail_sends("fa", status());
  ASSERT_TRUE(a_.writes(0, 500, 2));  // Unsignaled: its failure comes all the same.
  ASSERT_TRUE(a_.writes(0, 500, 3));
  std::vector<Announcement> got;
  EXPECT_TRUE(a_.lane->poll(got));
  EXPECT_EQ(a_.failure(), fmt::format("unavailable: {}{}", kNameA, to_string(status())));
  EXPECT_EQ(a_.lane->n_completed(), 1U);
  EXPECT_FALSE(a_.lane->poll(got));
  const auto written = a_.write(0, 500, 4);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().message, a_.lane->failure()->message);
  EXPECT_EQ(b_.poll(), Values{1});
}

TEST_P(LaneStatusTest, OfAReceiveEndsTheLaneAfterWhatArrivedBefore) {
  connect();
  ASSERT_TRUE(a_.writes(0, 500, 1));
  fabric_.fail_receives("fb", status());
  ASSERT_TRUE(a_.writes(0, 500, 2));
  ASSERT_TRUE(a_.writes(0, 500, 3));
  EXPECT_EQ(b_.poll(), Values{1});
  const bool is_too_long = status() == Status::kLocalLength;
  EXPECT_EQ(b_.failure(),
            fmt::format("{}: {}receiving: {}{}", is_too_long ? "protocol" : "unavailable", kNameB,
                        to_string(status()), " (vendor error 0x1)"));
  a_.poll();
  EXPECT_EQ(a_.failure(),
            fmt::format("unavailable: {}{}", kNameA, to_string(Status::kRemoteOperation)));
}

INSTANTIATE_TEST_SUITE_P(Statuses, LaneStatusTest, ::testing::Range(1, kStatusCount));

TEST_F(LaneTest, DeliversWhatArrivedAlthoughItsOwnSendFailed) {
  connect();
  ASSERT_TRUE(b_.writes(0, 500, 1));
  fabric_.fail_sends("fa", Status::kRetryExceeded);
  ASSERT_TRUE(a_.writes(0, 500, 9));
  EXPECT_EQ(a_.poll(), Values{1});
  EXPECT_NE(a_.failure(), "");
}

TEST_F(LaneTest, EndsWhenThePeerFallsSilent) {
  connect();
  fabric_.set_silent("fb", true);
  ASSERT_TRUE(a_.writes(0, 500, 1));
  a_.poll();
  EXPECT_EQ(a_.failure(), "unavailable: " + kNameA + "retry exceeded: the peer does not answer");
  EXPECT_EQ(b_.failure(), "");  // A receiver learns nothing from its card.
  b_.lane->poll_events();
  EXPECT_EQ(b_.poll(), Values{});
  EXPECT_EQ(b_.failure(), "");
}

// ---- Events -------------------------------------------------------------------------------------

TEST_F(LaneTest, EndsWithItsPort) {
  connect();
  fabric_.raise("fa", {.kind = EventKind::kPortError, .port = 2, .text = "port 2: link down"});
  a_.lane->poll_events();
  EXPECT_EQ(a_.failure(), "");
  fabric_.set_port_up("fa", false);
  EXPECT_EQ(a_.failure(), "");
  a_.lane->poll_events();
  EXPECT_EQ(a_.failure(), "unavailable: " + kNameA + "port 1: link down");
}

TEST_F(LaneTest, EndsWithItsGidOnly) {
  fabric_.add_device("c", "fc", {"10.0.0.3", "10.0.0.4"});
  LanePeer c(fabric_, "c");
  c.create();
  fabric_.change_gid("fc", 2, "10.0.0.5");
  fabric_.raise("fc", {.kind = EventKind::kGidChange, .port = 2, .text = {}});
  c.lane->poll_events();
  EXPECT_EQ(c.failure(), "");
  fabric_.change_gid("fc", 1, "10.0.0.6");
  c.lane->poll_events();
  EXPECT_EQ(c.failure(), "unavailable: rdma fc/1: GID 1 is not 10.0.0.3 any more");
}

TEST_F(LaneTest, EndsWithItsQueuePairOnly) {
  connect();
  const std::uint32_t number = a_.lane->local().qp_number;
  for (const EventKind kind : {EventKind::kQueuePairFatal, EventKind::kAccessViolation})
    fabric_.raise("fa", {.kind = kind, .qp_number = number + 1, .text = {}});
  fabric_.raise("fa", {.kind = EventKind::kPortActive, .port = 1, .text = {}});
  fabric_.raise("fa", {.kind = EventKind::kOther, .text = {}});
  a_.lane->poll_events();
  EXPECT_EQ(a_.failure(), "");
  fabric_.raise("fa", {.kind = EventKind::kQueuePairFatal, .qp_number = number, .text = {}});
  a_.lane->poll_events();
  EXPECT_EQ(a_.failure(), "unavailable: " + kNameA + "queue pair failed");
}

TEST_F(LaneTest, EndsWithItsDevice) {
  connect();
  ASSERT_TRUE(b_.writes(0, 500, 1));
  fabric_.remove_device("fa");
  const auto written = a_.write(0, 500, 1);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(written.error().message,
            kNameA + "fa: ibv_post_send: Input/output error: the device was removed");
  EXPECT_EQ(a_.fence(), Values{1});  // Returns although no flush ever comes.
  EXPECT_EQ(fabric_.counts().queue_pairs, 1U);

  LanePeer again(fabric_, "b");
  again.create();
  fabric_.remove_device("fb");
  again.lane->poll_events();
  EXPECT_EQ(again.failure(), "unavailable: rdma fb/1: the device was removed");
}

// ---- Hostile peers ------------------------------------------------------------------------------

/// A queue pair that is connected to a lane and does what it likes.
struct Raw {
  Raw(FakeFabric& fabric, const std::string& host, const std::string& name, Lane& lane)
      : provider(fabric.provider(host)), memory(4096) {
    device = std::move(*provider->open(name));
    domain = std::move(*device->create_domain());
    region = std::move(*domain->register_memory(memory, Access::kRemoteWrite));
    queue = std::move(*device->create_completion_queue(200));
    pair = std::move(*domain->create_queue_pair(*queue, {}));
    target = lane.local();
    const PortChoice port = choose_ports(*provider->devices(), {}, "")->front();
    EXPECT_TRUE(lane.connect({.port = port_address(port),
                              .qp_number = pair->number(),
                              .psn = 5,
                              .window_address = reinterpret_cast<std::uint64_t>(memory.data()),
                              .window_rkey = region->rkey(),
                              .window_bytes = memory.size()})
                    .ok());
    EXPECT_TRUE(pair->connect({.address = make_address(port, target.port),
                               .remote_qp_number = target.qp_number,
                               .remote_psn = target.psn,
                               .local_psn = 5,
                               .mtu_bytes = 4096})
                    .ok());
  }
  Status post(Operation operation, std::uint32_t bytes, std::uint64_t offset, std::uint32_t rkey) {
    const Segment segment{.data = memory.data(), .bytes = bytes, .lkey = region->lkey()};
    const SendRequest request{.operation = operation,
                              .segments = {&segment, 1},
                              .remote_address = target.window_address + offset,
                              .rkey = rkey,
                              .signaled = true};
    EXPECT_TRUE(pair->post_send({&request, 1}).ok());
    Completion out;
    EXPECT_EQ(*queue->poll({&out, 1}), 1U);
    return out.status;
  }

  std::unique_ptr<Provider> provider;
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::vector<std::byte> memory;
  std::unique_ptr<Region> region;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;
  LaneAddress target;
};

class LaneHostileTest : public LaneTest {
 protected:
  LaneHostileTest() {
    a_.create();
    raw_ = std::make_unique<Raw>(fabric_, "b", "fb", *a_.lane);
  }
  const std::string violation_ =
      "protocol: " + kNameA +
      "the peer wrote outside of its window of 65536 bytes or without the right key (queue pair ";
  std::unique_ptr<Raw> raw_;
};

TEST_F(LaneHostileTest, ReportsWritesOutsideOfTheWindow) {
  EXPECT_EQ(raw_->post(Operation::kWrite, 8, 65529, raw_->target.window_rkey),
            Status::kRemoteAccess);
  a_.lane->poll_events();
  EXPECT_TRUE(a_.failure().starts_with(violation_)) << a_.failure();
  EXPECT_EQ(a_.fence(), Values{});
}

TEST_F(LaneHostileTest, ReportsThemFromAPollToo) {
  // Receives are flushed, and the event says why; nobody needs to look at events for that.
  EXPECT_EQ(raw_->post(Operation::kWriteImmediate, 8, 0, raw_->target.window_rkey ^ 2),
            Status::kRemoteAccess);
  EXPECT_EQ(a_.poll(), Values{});
  EXPECT_TRUE(a_.failure().starts_with(violation_)) << a_.failure();
}

TEST_F(LaneHostileTest, ReportsThemWhenTheEventComesAfterTheFlush) {
  const DeviceEvent event{
      .kind = EventKind::kAccessViolation, .qp_number = a_.lane->local().qp_number, .text = {}};
  fabric_.fail_receives("fa", Status::kFlushed);
  EXPECT_NE(raw_->post(Operation::kWriteImmediate, 8, 0, raw_->target.window_rkey),
            Status::kSuccess);
  a_.poll();
  EXPECT_TRUE(a_.failure().starts_with("unavailable: ")) << a_.failure();
  fabric_.raise("fa", event);
  a_.lane->poll_events();
  EXPECT_TRUE(a_.failure().starts_with("protocol: ")) << a_.failure();
}

TEST_F(LaneHostileTest, ReportsAnnouncementsOfTheWrongLength) {
  EXPECT_EQ(raw_->post(Operation::kSend, 5, 0, 0), Status::kSuccess);
  EXPECT_EQ(a_.poll(), Values{});
  EXPECT_EQ(a_.failure(),
            "protocol: " + kNameA + "the peer sent an announcement of 5 bytes, need 4");
}

TEST_F(LaneHostileTest, ReportsAnnouncementsLongerThanAReceive) {
  EXPECT_EQ(raw_->post(Operation::kSend, 9, 0, 0), Status::kRemoteInvalidRequest);
  EXPECT_EQ(a_.poll(), Values{});
  EXPECT_TRUE(a_.failure().starts_with("protocol: " + kNameA + "receiving: local length error"))
      << a_.failure();
}

TEST_F(LaneHostileTest, TakesNoWriteIntoItsSources) {
  const auto before = a_.source;
  const std::uint64_t offset = reinterpret_cast<std::uint64_t>(a_.source.data()) -
                               reinterpret_cast<std::uint64_t>(a_.window.data());
  EXPECT_EQ(raw_->post(Operation::kWrite, 8, offset, raw_->target.window_rkey),
            Status::kRemoteAccess);
  EXPECT_EQ(a_.source, before);
}

TEST_F(LaneHostileTest, IsNotKeptByAnnouncementsWithoutEnd) {
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(raw_->post(Operation::kWriteImmediate, 0, 0, raw_->target.window_rkey),
              Status::kSuccess);
  }
  EXPECT_EQ(a_.poll().size(), 16U);
  EXPECT_EQ(raw_->post(Operation::kWriteImmediate, 0, 0, raw_->target.window_rkey),
            Status::kSuccess);
  EXPECT_EQ(a_.failure(), "");
}

// ---- The fence ----------------------------------------------------------------------------------

TEST_F(LaneTest, FenceDeliversWhatArrivedAndRefusesTheRest) {
  connect();
  std::fill(a_.source.begin(), a_.source.end(), std::byte{7});
  ASSERT_TRUE(a_.writes(0, 500, 1));
  ASSERT_TRUE(a_.writes(0, 500, 2));
  fabric_.hold(true);
  ASSERT_TRUE(a_.writes(5000, 500, 3));  // Under way.
  EXPECT_EQ(b_.fence(), (Values{1, 2}));
  EXPECT_EQ(b_.fence(), Values{});
  EXPECT_EQ(fabric_.counts().queue_pairs, 2U);  // All came back, so it could stay.
  fabric_.hold(false);
  EXPECT_EQ(b_.window[5000], std::byte{0});
  EXPECT_EQ(b_.poll(), Values{});
  a_.poll();
  EXPECT_EQ(a_.failure(), "unavailable: " + kNameA + "retry exceeded: the peer does not answer");
  EXPECT_EQ(a_.lane->n_completed(), 2U);
  EXPECT_EQ(b_.failure(), "");  // Its own flushes are no failure.
  const auto written = b_.write(0, 8, 1);
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().message, kNameB + "the lane is closed");
}

TEST_F(LaneTest, FenceEndsTheReadingOfSources) {
  for (const std::uint32_t signal_every : {1U, 7U, 1000U}) {
    SCOPED_TRACE(signal_every);
    connect({.send_depth = 16, .receive_depth = 16, .signal_every = signal_every});
    std::fill(b_.window.begin(), b_.window.end(), std::byte{0});
    fabric_.hold(true);
    for (std::uint32_t i = 0; i < 16; ++i) ASSERT_TRUE(a_.writes(0, 500, i)) << i;
    fabric_.release(3);
    a_.fence();
    const std::uint64_t n_completed = a_.lane->n_completed();
    EXPECT_LE(n_completed, 3U);
    std::fill(a_.source.begin(), a_.source.end(), std::byte{9});
    fabric_.hold(false);
    EXPECT_EQ(b_.window[0], std::byte{0});
    EXPECT_EQ(b_.poll(), (Values{0, 1, 2}));
    EXPECT_EQ(a_.lane->n_completed(), n_completed);
    std::fill(a_.source.begin(), a_.source.end(), std::byte{0});
  }
}

TEST_F(LaneTest, FenceKeepsOutWhatACardHasThatGivesNothingBack) {
  FakeLimits limits;
  limits.flushes = false;
  fabric_.set_limits("fb", limits);
  connect();
  ASSERT_TRUE(a_.writes(0, 500, 1));
  fabric_.hold(true);
  ASSERT_TRUE(a_.writes(5000, 500, 2));
  ASSERT_TRUE(b_.writes(0, 500, 3));
  std::fill(a_.source.begin(), a_.source.end(), std::byte{7});
  EXPECT_EQ(b_.fence(), Values{1});
  fabric_.hold(false);
  EXPECT_EQ(b_.window[5000], std::byte{0});
  EXPECT_EQ(a_.poll(), Values{});
  EXPECT_EQ(b_.poll(), Values{});
  EXPECT_FALSE(b_.write(0, 8, 1).ok());
}

TEST_F(LaneTest, FencesALaneThatHasFailed) {
  connect();
  ASSERT_TRUE(a_.writes(0, 500, 1));
  fabric_.fail_receives("fb", Status::kLocalProtection);
  ASSERT_TRUE(a_.writes(0, 500, 2));
  EXPECT_EQ(b_.fence(), Values{1});  // Nobody had polled.
  EXPECT_EQ(a_.fence(), Values{});
}

TEST_F(LaneTest, FencesALaneThatWasNeverConnected) {
  a_.create();
  EXPECT_EQ(a_.fence(), Values{});
  a_.poll();
  EXPECT_EQ(a_.failure(), "");
}

TEST_F(LaneTest, LeavesNothingBehindInAnyState) {
  for (int i = 0; i < 50; ++i) {
    connect();
    ASSERT_TRUE(a_.writes(0, 500, 1));
    if (i % 3 == 0) b_.poll();
    if (i % 5 == 0) fabric_.hold(true);
    ASSERT_TRUE(a_.writes(0, 500, 2));
    if (i % 2 == 0) a_.fence();
    if (i % 4 == 0) b_.fence();
    a_.lane.reset();
    if (i % 7 == 0) b_.poll();
    b_.lane.reset();
    fabric_.hold(false);
    EXPECT_EQ(fabric_.counts(), FakeCounts{});
  }
}

}  // namespace
}  // namespace recua::net::verbs
