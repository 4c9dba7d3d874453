// What can be done to a FakeFabric, and what its objects tell of it.
#include <algorithm>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "net/verbs/address.h"
#include "net/verbs/fake_fabric.h"
#include "net/verbs/fake_test_end.h"

namespace recua::net::verbs {
namespace {

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
