#include "net/verbs/fake_fabric.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "net/verbs/address.h"
#include "net/verbs/fake_test_end.h"

namespace recua::net::verbs {
namespace {

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

}  // namespace
}  // namespace recua::net::verbs
