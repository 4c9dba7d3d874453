#include "net/verbs/fake_fabric.h"

#include <algorithm>
#include <string>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "net/verbs/address.h"

namespace recua::net::verbs {
namespace {

std::vector<Completion> take(CompletionQueue& queue) {
  std::vector<Completion> out(64);
  auto n = queue.poll(out);
  EXPECT_TRUE(n.ok()) << n.error().message;
  out.resize(n.ok() ? *n : 0);
  return out;
}

std::vector<std::pair<std::uint64_t, Status>> take_statuses(CompletionQueue& queue) {
  std::vector<std::pair<std::uint64_t, Status>> out;
  for (const Completion& completion : take(queue))
    out.emplace_back(completion.wr_id, completion.status);
  return out;
}
using Statuses = std::vector<std::pair<std::uint64_t, Status>>;

std::vector<EventKind> take_events(Device& device) {
  std::vector<EventKind> out;
  while (const auto event = device.poll_event()) out.push_back(event->kind);
  return out;
}
using Events = std::vector<EventKind>;

/// One end of a connection, with objects as a card has them.
struct End {
  End(FakeFabric& fabric, const std::string& host, const std::string& name,
      const QueuePairOptions& options = {})
      : provider(fabric.provider(host)), memory(4096) {
    device = std::move(*provider->open(name));
    domain = std::move(*device->create_domain());
    window = std::move(*domain->register_memory(memory, Access::kRemoteWrite));
    queue = std::move(*device->create_completion_queue(64));
    pair = std::move(*domain->create_queue_pair(*queue, options));
  }

  /// What a peer needs to reach this end.
  [[nodiscard]] ConnectParameters reach() const {
    ConnectParameters out;
    out.address = {.port = 1, .gid = device->info().ports[0].gids[1].gid, .gid_index = 1};
    out.remote_qp_number = pair->number();
    out.remote_psn = psn;
    out.mtu_bytes = 4096;
    return out;
  }
  [[nodiscard]] std::uint64_t address() const {
    return reinterpret_cast<std::uint64_t>(memory.data());
  }
  Result<void> connect(const End& peer) {
    ConnectParameters parameters = peer.reach();
    parameters.local_psn = psn;
    return pair->connect(parameters);
  }
  Result<void> write(const End& peer, std::uint64_t wr_id, bool signaled = true,
                     Operation operation = Operation::kWrite) {
    return write_to(wr_id, peer.address(), peer.window->rkey(), 8, signaled, operation);
  }
  Result<void> write_to(std::uint64_t wr_id, std::uint64_t address, std::uint32_t rkey,
                        std::uint32_t bytes, bool signaled = true,
                        Operation operation = Operation::kWrite) {
    const Segment segment{.data = memory.data() + 2048, .bytes = bytes, .lkey = window->lkey()};
    const SendRequest request{.wr_id = wr_id,
                              .operation = operation,
                              .segments = {&segment, 1},
                              .remote_address = address,
                              .rkey = rkey,
                              .immediate = 77,
                              .signaled = signaled};
    return pair->post_send({&request, 1});
  }
  Result<void> receive(std::uint64_t wr_id, std::uint32_t bytes = 8) {
    const ReceiveRequest request{
        .wr_id = wr_id,
        .segment = {.data = memory.data() + 1024, .bytes = bytes, .lkey = window->lkey()}};
    return pair->post_receive({&request, 1});
  }

  std::unique_ptr<Provider> provider;
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::vector<std::byte> memory;
  std::unique_ptr<Region> window;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;
  std::uint32_t psn = 0x123456;
};

class FakeFabricTest : public ::testing::Test {
 protected:
  FakeFabricTest() {
    fabric_.add_device("a", "fa", {"10.0.0.1", "fd00::1"});
    fabric_.add_device("b", "fb", {"10.0.0.2"});
  }
  void connect(const QueuePairOptions& options = {}) {
    a_ = std::make_unique<End>(fabric_, "a", "fa", options);
    b_ = std::make_unique<End>(fabric_, "b", "fb", options);
    b_->psn = 0x654321;
    ASSERT_TRUE(a_->connect(*b_).ok());
    ASSERT_TRUE(b_->connect(*a_).ok());
    std::fill(a_->memory.begin(), a_->memory.end(), std::byte{0xaa});
  }
  /// Whether b got what a wrote.
  [[nodiscard]] bool arrived() const { return b_->memory[0] == std::byte{0xaa}; }

  FakeFabric fabric_;
  std::unique_ptr<End> a_;
  std::unique_ptr<End> b_;
};

TEST_F(FakeFabricTest, ShowsEachHostItsDevices) {
  auto devices = fabric_.provider("a")->devices();
  ASSERT_TRUE(devices.ok());
  ASSERT_EQ(devices->size(), 1U);
  EXPECT_EQ(devices->front().name, "fa");
  const auto& gids = devices->front().ports[0].gids;
  ASSERT_EQ(gids.size(), 3U);
  EXPECT_EQ(to_string(gids[0].gid), "fe80::1");
  EXPECT_EQ(to_string(gids[1].gid), "10.0.0.1");
  EXPECT_EQ(to_string(gids[2].gid), "fd00::1");
  EXPECT_TRUE(fabric_.provider("c")->devices()->empty());
  const auto wrong = fabric_.provider("a")->open("fb");
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(wrong.error().message, "there is no RDMA device \"fb\", only: fa");
}

TEST_F(FakeFabricTest, WritesAndTellsTheReceiverOfImmediatesOnly) {
  connect();
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_TRUE(arrived());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kSuccess}}));
  EXPECT_TRUE(take(*b_->queue).empty());

  ASSERT_TRUE(b_->receive(9).ok());
  ASSERT_TRUE(a_->write(*b_, 2, true, Operation::kWriteImmediate).ok());
  const auto got = take(*b_->queue);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].wr_id, 9U);
  EXPECT_EQ(got[0].kind, CompletionKind::kReceiveImmediate);
  EXPECT_EQ(got[0].immediate, 77U);
  EXPECT_EQ(got[0].bytes, 8U);
}

TEST_F(FakeFabricTest, SendsIntoTheOldestReceive) {
  connect();
  ASSERT_TRUE(b_->receive(9).ok());
  ASSERT_TRUE(b_->receive(10).ok());
  ASSERT_TRUE(a_->write(*b_, 1, true, Operation::kSend).ok());
  const auto got = take(*b_->queue);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].wr_id, 9U);
  EXPECT_EQ(got[0].kind, CompletionKind::kReceive);
  EXPECT_EQ(got[0].bytes, 8U);
  EXPECT_EQ(b_->memory[1024], std::byte{0xaa});
  EXPECT_FALSE(arrived());
}

TEST_F(FakeFabricTest, GathersSegmentsAndCopiesInlineData) {
  connect();
  fabric_.hold(true);
  std::vector<std::byte> loose(4, std::byte{1});
  const std::array<Segment, 2> inline_segments = {Segment{.data = loose.data(), .bytes = 1},
                                                  Segment{.data = loose.data() + 1, .bytes = 2}};
  const std::array<Segment, 2> gathered = {
      Segment{.data = a_->memory.data(), .bytes = 2, .lkey = a_->window->lkey()},
      Segment{.data = a_->memory.data() + 8, .bytes = 1, .lkey = a_->window->lkey()}};
  const auto address = b_->address();
  const std::array<SendRequest, 2> requests = {SendRequest{.wr_id = 1,
                                                           .segments = inline_segments,
                                                           .remote_address = address,
                                                           .rkey = b_->window->rkey(),
                                                           .inline_data = true},
                                               SendRequest{.wr_id = 2,
                                                           .segments = gathered,
                                                           .remote_address = address + 3,
                                                           .rkey = b_->window->rkey(),
                                                           .signaled = true}};
  ASSERT_TRUE(a_->pair->post_send(requests).ok());
  // Inline data was taken, the rest is read when the card comes to it.
  std::fill(loose.begin(), loose.end(), std::byte{9});
  a_->memory[8] = std::byte{3};
  EXPECT_EQ(fabric_.release(), 2U);
  const std::vector<std::byte> expected = {std::byte{1},    std::byte{1},    std::byte{1},
                                           std::byte{0xaa}, std::byte{0xaa}, std::byte{3},
                                           std::byte{0}};
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), b_->memory.begin()));
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{2, Status::kSuccess}}));
}

// ---- What a card refuses ------------------------------------------------------------------------

struct BadWrite {
  const char* name;
  std::int64_t offset;
  std::uint32_t bytes;
  bool right_key;
};
class FakeFabricBadWriteTest : public FakeFabricTest,
                               public ::testing::WithParamInterface<BadWrite> {};

TEST_P(FakeFabricBadWriteTest, FailsBothEndsAndTellsTheReceiversDevice) {
  connect();
  ASSERT_TRUE(b_->receive(9).ok());
  const std::vector<std::byte> before = b_->memory;
  const std::uint64_t address = b_->address() + static_cast<std::uint64_t>(GetParam().offset);
  const std::uint32_t key = GetParam().right_key ? b_->window->rkey() : b_->window->rkey() ^ 4;
  ASSERT_TRUE(a_->write_to(1, address, key, GetParam().bytes, false).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteAccess}}));
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{9, Status::kFlushed}}));
  EXPECT_EQ(b_->memory, before);
  const auto event = b_->device->poll_event();
  ASSERT_TRUE(event);
  EXPECT_EQ(event->kind, EventKind::kAccessViolation);
  EXPECT_EQ(event->qp_number, b_->pair->number());
  EXPECT_EQ(take_events(*a_->device), Events{});
  // Both queue pairs are in error.
  ASSERT_TRUE(a_->write(*b_, 2).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{2, Status::kFlushed}}));
  ASSERT_TRUE(b_->write(*a_, 3).ok());
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{3, Status::kFlushed}}));
}

INSTANTIATE_TEST_SUITE_P(Ranges, FakeFabricBadWriteTest,
                         ::testing::Values(BadWrite{"PastTheEnd", 4089, 8, true},
                                           BadWrite{"BeforeTheStart", -1, 8, true},
                                           BadWrite{"FarAway", std::int64_t{1} << 62, 8, true},
                                           BadWrite{"AroundTheEndOfMemory", -8, 2000, true},
                                           BadWrite{"WithTheWrongKey", 0, 8, false}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(FakeFabricTest, RefusesKeysOfOtherDomains) {
  connect();
  const auto other = std::move(*b_->device->create_domain());
  const auto foreign = std::move(*other->register_memory(b_->memory, Access::kRemoteWrite));
  ASSERT_TRUE(a_->write_to(1, b_->address(), foreign->rkey(), 8).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteAccess}}));
}

TEST_F(FakeFabricTest, RefusesWritesToLocalRegions) {
  connect();
  const auto local = std::move(*b_->domain->register_memory(b_->memory, Access::kLocal));
  ASSERT_TRUE(a_->write_to(1, b_->address(), local->rkey(), 8).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteAccess}}));
}

TEST_F(FakeFabricTest, RefusesWritesToQueuePairsWithoutThatRight) {
  connect({.remote_write = false});
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteInvalidRequest}}));
  EXPECT_EQ(take_events(*b_->device), Events{EventKind::kAccessViolation});
}

TEST_F(FakeFabricTest, RefusesSourcesThatAreNotRegisteredThere) {
  connect();
  const Segment segment{.data = a_->memory.data(), .bytes = 8, .lkey = b_->window->lkey()};
  const SendRequest request{.wr_id = 1,
                            .segments = {&segment, 1},
                            .remote_address = b_->address(),
                            .rkey = b_->window->rkey()};
  ASSERT_TRUE(a_->pair->post_send({&request, 1}).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kLocalProtection}}));
  EXPECT_FALSE(arrived());
  EXPECT_EQ(take_events(*b_->device), Events{});
}

TEST_F(FakeFabricTest, RefusesMessagesLongerThanThePortTakes) {
  FakeLimits limits;
  limits.message_bytes_max = 7;
  fabric_.set_limits("fa", limits);
  connect();
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kLocalLength}}));
}

TEST_F(FakeFabricTest, FailsBothEndsOfASendThatIsLongerThanTheReceive) {
  connect();
  ASSERT_TRUE(b_->receive(9, 7).ok());
  ASSERT_TRUE(a_->write(*b_, 1, true, Operation::kSend).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteInvalidRequest}}));
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{9, Status::kLocalLength}}));
}

TEST_F(FakeFabricTest, EndsTheSenderOnlyWhenNoReceiveIsPosted) {
  connect();
  ASSERT_TRUE(a_->write(*b_, 1, false, Operation::kWriteImmediate).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRnrRetryExceeded}}));
  EXPECT_FALSE(arrived());
  EXPECT_TRUE(take(*b_->queue).empty());
  EXPECT_EQ(take_events(*b_->device), Events{});
  ASSERT_TRUE(b_->write(*a_, 2).ok());  // Not in error itself, but its peer answers no more.
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{2, Status::kRetryExceeded}}));
}

TEST_F(FakeFabricTest, HasNoImmediatesWhereToldSo) {
  FakeLimits limits;
  limits.immediates = false;
  fabric_.set_limits("fb", limits);
  connect();
  ASSERT_TRUE(b_->receive(9).ok());
  const auto posted = b_->write(*a_, 1, true, Operation::kWriteImmediate);
  ASSERT_FALSE(posted.ok());
  EXPECT_EQ(posted.error().code, ErrorCode::kIo);
  ASSERT_TRUE(a_->write(*b_, 2, true, Operation::kWriteImmediate).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{2, Status::kRemoteInvalidRequest}}));
}

TEST_F(FakeFabricTest, RefusesPacketsLongerThanTheReceiverAgreedTo) {
  a_ = std::make_unique<End>(fabric_, "a", "fa");
  b_ = std::make_unique<End>(fabric_, "b", "fb");
  ASSERT_TRUE(a_->connect(*b_).ok());
  ConnectParameters parameters = a_->reach();
  parameters.local_psn = b_->psn;
  parameters.mtu_bytes = 256;
  ASSERT_TRUE(b_->pair->connect(parameters).ok());
  ASSERT_TRUE(a_->write_to(1, b_->address(), b_->window->rkey(), 256).ok());
  ASSERT_TRUE(a_->write_to(2, b_->address(), b_->window->rkey(), 257).ok());
  EXPECT_EQ(take_statuses(*a_->queue),
            (Statuses{{1, Status::kSuccess}, {2, Status::kRemoteInvalidRequest}}));
}

// ---- Queues -------------------------------------------------------------------------------------

TEST_F(FakeFabricTest, GivesSendSlotsBackWithPolledCompletionsOnly) {
  connect({.send_depth = 4});
  for (std::uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(a_->write(*b_, i, i == 1).ok());
  EXPECT_TRUE(a_->write(*b_, 3, false).ok());
  const auto full = a_->write(*b_, 4);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kSuccess}}));
  EXPECT_TRUE(a_->write(*b_, 4).ok());  // 0 and 1 were given back, 2 and 3 were not.
  EXPECT_TRUE(a_->write(*b_, 5).ok());
  EXPECT_FALSE(a_->write(*b_, 6).ok());
}

TEST_F(FakeFabricTest, TakesAsManyReceivesAsItIsDeep) {
  connect({.receive_depth = 2});
  ASSERT_TRUE(b_->receive(1).ok());
  ASSERT_TRUE(b_->receive(2).ok());
  ASSERT_FALSE(b_->receive(3).ok());
  ASSERT_TRUE(a_->write(*b_, 1, false, Operation::kWriteImmediate).ok());
  ASSERT_FALSE(b_->receive(3).ok());  // Its completion was not polled yet.
  EXPECT_EQ(take(*b_->queue).size(), 1U);
  EXPECT_TRUE(b_->receive(3).ok());
}

TEST_F(FakeFabricTest, LosesTheQueueThatItOverruns) {
  connect();
  b_->pair.reset();
  b_->queue = std::move(*b_->device->create_completion_queue(1));
  b_->pair = std::move(*b_->domain->create_queue_pair(*b_->queue, {}));
  ASSERT_TRUE(b_->receive(1).ok());
  ASSERT_TRUE(b_->receive(2).ok());
  ASSERT_TRUE(b_->pair->set_error().ok());
  EXPECT_EQ(take(*b_->queue).size(), 1U);
  std::array<Completion, 1> out;
  EXPECT_FALSE(b_->queue->poll(out).ok());
}

TEST_F(FakeFabricTest, StepsInlineDataDownUntilCreationSucceeds) {
  connect({.inline_bytes = 1000});  // 1000, 500, 250, 125
  EXPECT_EQ(a_->pair->inline_bytes_max(), 125U);
  std::vector<std::byte> data(126);
  Segment segment{.data = data.data(), .bytes = 125};
  SendRequest request{.segments = {&segment, 1},
                      .remote_address = b_->address(),
                      .rkey = b_->window->rkey(),
                      .inline_data = true};
  EXPECT_TRUE(a_->pair->post_send({&request, 1}).ok());
  segment.bytes = 126;
  EXPECT_FALSE(a_->pair->post_send({&request, 1}).ok());
}

TEST_F(FakeFabricTest, LimitsSegmentsAndDepthsAtCreation) {
  const End end(fabric_, "a", "fa");
  EXPECT_FALSE(end.domain->create_queue_pair(*end.queue, {.segments_max = 31}).ok());
  EXPECT_FALSE(end.domain->create_queue_pair(*end.queue, {.send_depth = 1 << 20}).ok());
  EXPECT_FALSE(end.domain->create_queue_pair(*end.queue, {.port = 2}).ok());
  EXPECT_TRUE(end.domain->create_queue_pair(*end.queue, {.segments_max = 30}).ok());
}

TEST_F(FakeFabricTest, LocksNoMoreMemoryThanAllowed) {
  FakeLimits limits;
  limits.locked_bytes_max = 6000;
  fabric_.set_limits("fa", limits);
  const End end(fabric_, "a", "fa");  // 4096
  std::vector<std::byte> more(2000);
  const auto refused = end.domain->register_memory(more, Access::kLocal);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().message,
            "fa: cannot lock 2000 bytes of memory besides 4096, the limit is 6000: raise it with "
            "\"ulimit -l unlimited\" or LimitMEMLOCK=infinity");
  more.resize(1904);
  EXPECT_TRUE(end.domain->register_memory(more, Access::kLocal).ok());
}

// ---- Connecting ---------------------------------------------------------------------------------

TEST_F(FakeFabricTest, RefusesParametersThatNoCardTakes) {
  a_ = std::make_unique<End>(fabric_, "a", "fa");
  b_ = std::make_unique<End>(fabric_, "b", "fb");
  const auto refuses = [&](auto change) {
    ConnectParameters parameters = b_->reach();
    change(parameters);
    return !a_->pair->connect(parameters).ok();
  };
  EXPECT_TRUE(refuses([](auto& p) { p.mtu_bytes = 1500; }));
  EXPECT_TRUE(refuses([](auto& p) { p.remote_qp_number = 1 << 24; }));
  EXPECT_TRUE(refuses([](auto& p) { p.remote_psn = 1 << 24; }));
  EXPECT_TRUE(refuses([](auto& p) { p.local_psn = 1 << 24; }));
  EXPECT_TRUE(refuses([](auto& p) { p.retry_count = 8; }));
  EXPECT_TRUE(refuses([](auto& p) { p.address.gid_index = 9; }));
  EXPECT_TRUE(refuses([](auto& p) { p.address.is_global = false; }));
  EXPECT_TRUE(refuses([](auto& p) { p.address.gid[15] = std::byte{99}; }));
  EXPECT_FALSE(refuses([](auto&) {}));
  EXPECT_TRUE(refuses([](auto&) {}));  // Connected already.
}

TEST_F(FakeFabricTest, DropsPacketsThatAreNotOfTheConnection) {
  for (const bool right_psn : {false, true}) {
    SCOPED_TRACE(right_psn);
    a_ = std::make_unique<End>(fabric_, "a", "fa");
    b_ = std::make_unique<End>(fabric_, "b", "fb");
    ASSERT_TRUE(a_->connect(*b_).ok());
    ConnectParameters parameters = a_->reach();
    parameters.local_psn = b_->psn;
    if (!right_psn) parameters.remote_psn ^= 1;
    ASSERT_TRUE(b_->pair->connect(parameters).ok());
    ASSERT_TRUE(a_->write(*b_, 1).ok());
    EXPECT_EQ(take_statuses(*a_->queue),
              (Statuses{{1, right_psn ? Status::kSuccess : Status::kRetryExceeded}}));
  }
}

TEST_F(FakeFabricTest, SendsNothingBeforeItIsConnected) {
  a_ = std::make_unique<End>(fabric_, "a", "fa");
  b_ = std::make_unique<End>(fabric_, "b", "fb");
  EXPECT_FALSE(a_->write(*b_, 1).ok());
  ASSERT_TRUE(a_->connect(*b_).ok());
  ASSERT_TRUE(a_->write(*b_, 1).ok());  // The peer is not.
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRetryExceeded}}));
}

// ---- Faults -------------------------------------------------------------------------------------

TEST_F(FakeFabricTest, FlushesWhatIsPostedAfterSetError) {
  connect();
  fabric_.hold(true);
  ASSERT_TRUE(a_->receive(9).ok());
  ASSERT_TRUE(a_->write(*b_, 1, false).ok());
  ASSERT_TRUE(a_->pair->set_error().ok());
  ASSERT_TRUE(a_->pair->set_error().ok());
  ASSERT_TRUE(a_->write(*b_, 2, false).ok());
  ASSERT_TRUE(a_->receive(10).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kFlushed},
                                                 {9, Status::kFlushed},
                                                 {2, Status::kFlushed},
                                                 {10, Status::kFlushed}}));
  EXPECT_EQ(fabric_.release(), 0U);
  EXPECT_FALSE(arrived());
}

TEST_F(FakeFabricTest, RefusesPacketsAfterSetErrorOfTheReceiver) {
  connect();
  fabric_.hold(true);
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  ASSERT_TRUE(b_->pair->set_error().ok());
  fabric_.hold(false);
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRetryExceeded}}));
  EXPECT_FALSE(arrived());
}

TEST_F(FakeFabricTest, ReleasesAsManyDeliveriesAsAsked) {
  connect();
  fabric_.hold(true);
  for (std::uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(a_->write(*b_, i).ok());
  EXPECT_TRUE(take(*a_->queue).empty());
  EXPECT_EQ(fabric_.release(2), 2U);
  EXPECT_EQ(take(*a_->queue).size(), 2U);
  fabric_.hold(false);
  EXPECT_EQ(take(*a_->queue).size(), 3U);
}

class FakeFabricStatusTest : public FakeFabricTest, public ::testing::WithParamInterface<int> {
 protected:
  [[nodiscard]] static Status status() { return static_cast<Status>(GetParam()); }
};

TEST_P(FakeFabricStatusTest, FailsSendsEvenUnsignaledOnes) {
  connect();
  fabric_.fail_sends("fa", status());
  ASSERT_TRUE(a_->write(*b_, 1, false).ok());
  ASSERT_TRUE(a_->write(*b_, 2, false).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, status()}, {2, Status::kFlushed}}));
  EXPECT_TRUE(take(*b_->queue).empty());
}

TEST_P(FakeFabricStatusTest, FailsReceives) {
  connect();
  fabric_.fail_receives("fb", status());
  ASSERT_TRUE(b_->receive(8).ok());
  ASSERT_TRUE(b_->receive(9).ok());
  ASSERT_TRUE(a_->write(*b_, 1, false, Operation::kWriteImmediate).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRemoteOperation}}));
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{8, status()}, {9, Status::kFlushed}}));
  EXPECT_FALSE(arrived());
}

TEST_P(FakeFabricStatusTest, HasWordsOfItsOwn) {
  const std::string_view words = to_string(status());
  EXPECT_NE(words, "unknown status");
  for (int other = 0; other < GetParam(); ++other)
    EXPECT_NE(to_string(static_cast<Status>(other)), words);
}

INSTANTIATE_TEST_SUITE_P(Statuses, FakeFabricStatusTest, ::testing::Range(1, kStatusCount));

TEST_F(FakeFabricTest, RaisesPortEventsAndLosesPacketsWhileTheLinkIsDown) {
  connect();
  fabric_.set_port_up("fb", false);
  fabric_.set_port_up("fb", false);
  EXPECT_EQ(take_events(*b_->device), Events{EventKind::kPortError});
  EXPECT_EQ(take_events(*a_->device), Events{});
  EXPECT_EQ(b_->device->query_port(1)->state, PortState::kDown);
  EXPECT_EQ(b_->device->info().ports[0].state, PortState::kActive);  // When it was opened.
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRetryExceeded}}));
  fabric_.set_port_up("fb", true);
  EXPECT_EQ(take_events(*b_->device), Events{EventKind::kPortActive});
  connect();
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_TRUE(arrived());
}

TEST_F(FakeFabricTest, LosesPacketsOfASilentDeviceWithoutAnEvent) {
  connect();
  fabric_.set_silent("fa", true);
  ASSERT_TRUE(b_->write(*a_, 1).ok());
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{1, Status::kRetryExceeded}}));
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRetryExceeded}}));
  EXPECT_EQ(take_events(*a_->device), Events{});
  EXPECT_EQ(take_events(*b_->device), Events{});
}

TEST_F(FakeFabricTest, LosesTheWayWhenAGidChanges) {
  connect();
  fabric_.change_gid("fb", 1, "10.0.0.99");
  EXPECT_EQ(take_events(*b_->device), Events{EventKind::kGidChange});
  EXPECT_EQ(to_string(b_->device->query_port(1)->gids[1].gid), "10.0.0.99");
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  EXPECT_EQ(take_statuses(*a_->queue), (Statuses{{1, Status::kRetryExceeded}}));
}

TEST_F(FakeFabricTest, TakesNothingForARemovedDevice) {
  connect();
  fabric_.remove_device("fa");
  EXPECT_EQ(take_events(*a_->device), Events{EventKind::kDeviceFatal});
  EXPECT_FALSE(a_->write(*b_, 1).ok());
  EXPECT_FALSE(a_->receive(1).ok());
  EXPECT_FALSE(a_->pair->set_error().ok());
  EXPECT_FALSE(a_->device->query_port(1).ok());
  EXPECT_FALSE(a_->device->create_domain().ok());
  EXPECT_TRUE(fabric_.provider("a")->devices()->empty());
  EXPECT_FALSE(fabric_.provider("a")->open("fa").ok());
  ASSERT_TRUE(b_->write(*a_, 1).ok());
  EXPECT_EQ(take_statuses(*b_->queue), (Statuses{{1, Status::kRetryExceeded}}));
  fabric_.add_device("a", "fa", {"10.0.0.1"});
  EXPECT_TRUE(fabric_.provider("a")->open("fa").ok());
}

TEST_F(FakeFabricTest, RefusesToOpenABusyDevice) {
  fabric_.set_busy("fa", true);
  const auto opened = fabric_.provider("a")->open("fa");
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kResourceExhausted);
  fabric_.set_busy("fa", false);
  EXPECT_TRUE(fabric_.provider("a")->open("fa").ok());
}

TEST_F(FakeFabricTest, RaisesAnyEvent) {
  connect();
  for (int kind = 0; kind <= static_cast<int>(EventKind::kOther); ++kind) {
    fabric_.raise("fa", {.kind = static_cast<EventKind>(kind), .text = "as told"});
    const auto event = a_->device->poll_event();
    ASSERT_TRUE(event);
    EXPECT_EQ(event->kind, static_cast<EventKind>(kind));
    EXPECT_NE(to_string(event->kind), "unknown event");
  }
}

// ---- Waking up and counting ---------------------------------------------------------------------

TEST_F(FakeFabricTest, WakesOnceForTheNextCompletion) {
  connect();
  asio::io_context loop;
  int n_calls = 0;
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  a_->queue->arm(loop.get_executor(), [&] { ++n_calls; });
  loop.poll();
  EXPECT_EQ(n_calls, 0);  // What was there before does not count.
  ASSERT_TRUE(a_->write(*b_, 2, false).ok());
  loop.restart();
  loop.poll();
  EXPECT_EQ(n_calls, 0);  // No completion.
  ASSERT_TRUE(a_->write(*b_, 3).ok());
  ASSERT_TRUE(a_->write(*b_, 4).ok());
  EXPECT_EQ(n_calls, 0);  // From the loop, not from inside of the post.
  loop.restart();
  loop.poll();
  EXPECT_EQ(n_calls, 1);
}

TEST_F(FakeFabricTest, WakesForEventsThatAreThereAndThatCome) {
  connect();
  asio::io_context loop;
  int n_calls = 0;
  fabric_.set_port_up("fa", false);
  a_->device->arm_events(loop.get_executor(), [&] { ++n_calls; });
  loop.poll();
  EXPECT_EQ(n_calls, 1);
  EXPECT_EQ(take_events(*a_->device).size(), 1U);
  a_->device->arm_events(loop.get_executor(), [&] { ++n_calls; });
  loop.restart();
  loop.poll();
  EXPECT_EQ(n_calls, 1);
  fabric_.set_port_up("fa", true);
  loop.restart();
  loop.poll();
  EXPECT_EQ(n_calls, 2);
}

TEST_F(FakeFabricTest, ForgetsCallbacksOfObjectsThatAreGone) {
  connect();
  asio::io_context loop;
  int n_calls = 0;
  a_->queue->arm(loop.get_executor(), [&] { ++n_calls; });
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  a_->pair.reset();
  a_->queue.reset();
  loop.poll();
  EXPECT_EQ(n_calls, 0);
}

TEST_F(FakeFabricTest, CountsWhatIsAlive) {
  EXPECT_EQ(fabric_.counts(), FakeCounts{});
  connect();
  EXPECT_EQ(fabric_.counts(),
            (FakeCounts{.contexts = 2, .domains = 2, .regions = 2, .queues = 2, .queue_pairs = 2}));
  fabric_.hold(true);
  ASSERT_TRUE(a_->write(*b_, 1).ok());
  a_.reset();
  EXPECT_EQ(fabric_.release(), 0U);  // Its requests went with the queue pair.
  b_.reset();
  EXPECT_EQ(fabric_.counts(), FakeCounts{});
}

}  // namespace
}  // namespace recua::net::verbs
