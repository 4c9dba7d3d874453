#include "rpc/control.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "rpc/frame.h"
#include "rpc/test_world.h"

namespace recua::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

using Reply = Result<wire::ControlMessage>;

wire::ControlMessage fetch(std::uint32_t chunk) {
  wire::ControlMessage out;
  out.mutable_fetch_chunk()->set_chunk(chunk);
  return out;
}

/// Waits (chunk % 7) ms, then sends the chunk's number back; chunk 404 does not exist, 500 is slow.
net::asio::awaitable<Reply> serve_chunk(net::Clock* clock, wire::ControlMessage request) {
  const std::uint32_t chunk = request.fetch_chunk().chunk();
  if (chunk == 404) co_return Error{ErrorCode::kNotFound, "chunk 404 is not here"};
  const milliseconds delay(chunk == 500 ? 3'600'000 : chunk % 7);
  co_await clock->sleep_for(delay);
  wire::ControlMessage reply;
  reply.mutable_chunk()->set_data(fmt::format("{}", chunk));
  co_return reply;
}

struct ControlWorld : TestWorld {
  explicit ControlWorld(const ControlOptions& options = {}) {
    ControlHandlers left_handlers;
    left_handlers.on_lost = [this](const Error& error) { left_lost.push_back(error); };
    ControlHandlers right_handlers;
    right_handlers.on_request = [this](wire::ControlMessage request) {
      return serve_chunk(&loop, std::move(request));
    };
    right_handlers.on_notice = [this](const wire::ControlMessage& notice) {
      notices.push_back(notice);
    };
    right_handlers.on_lost = [this](const Error& error) { right_lost.push_back(error); };
    left = std::make_unique<ControlConnection>(a, std::move(client), options, left_handlers);
    right = std::make_unique<ControlConnection>(b, std::move(server), options, right_handlers);
  }

  std::vector<Error> left_lost;
  std::vector<Error> right_lost;
  std::vector<wire::ControlMessage> notices;
  std::unique_ptr<ControlConnection> left;
  std::unique_ptr<ControlConnection> right;
};

TEST(Control, MatchesRepliesToRequestsInAnyOrder) {
  ControlWorld world;
  std::vector<std::shared_ptr<std::optional<Reply>>> calls;
  for (std::uint32_t i = 0; i < 50; ++i)
    calls.push_back(world.start(world.left->call(fetch(i), seconds(5))));
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Reply reply = world.finish(calls[i]);
    ASSERT_TRUE(reply.ok()) << reply.error().message;
    EXPECT_EQ(reply->chunk().data(), fmt::format("{}", i));
  }
}

TEST(Control, TurnsAPeersErrorIntoOursWithItsName) {
  ControlWorld world;
  const Reply reply = world.loop.run(world.left->call(fetch(404), seconds(5)));
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(reply.error().message, "b:7500: chunk 404 is not here");
}

TEST(Control, EndsACallAtItsDeadlineAndStaysUsable) {
  ControlWorld world;
  const Reply slow = world.loop.run(world.left->call(fetch(500), seconds(5)));
  EXPECT_EQ(slow.error().code, ErrorCode::kTimeout);
  EXPECT_EQ(slow.error().message, "no reply to fetch_chunk from b:7500 within 5 s");
  EXPECT_TRUE(world.loop.run(world.left->call(fetch(1), seconds(5))).ok());
}

TEST(Control, DeliversNoticesInOrder) {
  ControlWorld world;
  for (std::uint64_t i = 0; i < 10; ++i) {
    wire::ControlMessage notice;
    notice.mutable_load_progress()->set_bytes_done(i);
    ASSERT_TRUE(world.left->notify(notice).ok());
  }
  world.settle();
  ASSERT_EQ(world.notices.size(), 10u);
  for (std::uint64_t i = 0; i < 10; ++i)
    EXPECT_EQ(world.notices[i].load_progress().bytes_done(), i);
}

TEST(Control, SaysUnsupportedToRequestsNobodyHandles) {
  ControlWorld world;  // The left side has no handler.
  const Reply reply = world.loop.run(world.right->call(fetch(1), seconds(5)));
  EXPECT_EQ(reply.error().code, ErrorCode::kUnsupported);
}

TEST(Control, StaysAliveWhileNothingHappens) {
  ControlWorld world;
  world.loop.run_for(std::chrono::minutes(10));
  EXPECT_TRUE(world.left_lost.empty() && world.right_lost.empty());
}

TEST(Control, TakesASilentPeerForLostAfterThreeIntervals) {
  ControlWorld world;
  world.settle();
  const auto call = world.start(world.left->call(fetch(500), std::chrono::hours(1)));
  world.network.silence("b");
  const net::TimePoint start = world.loop.now();
  EXPECT_EQ(world.finish(call).error().code, ErrorCode::kTimeout);
  EXPECT_GE(world.loop.now() - start, seconds(2));
  EXPECT_LE(world.loop.now() - start, seconds(4));
  world.loop.run_for(seconds(10));
  ASSERT_EQ(world.left_lost.size(), 1u);
  EXPECT_EQ(world.right_lost.size(), 1u);
  EXPECT_NE(world.left_lost[0].message.find("silent for 3 s"), std::string::npos)
      << world.left_lost[0].message;
  EXPECT_TRUE(world.left->lost());
  EXPECT_EQ(world.left->notify(fetch(1)).error().code, ErrorCode::kTimeout);
}

TEST(Control, SeesABrokenConnectionAtOnceAndTellsItOnce) {
  ControlWorld world;
  const auto call = world.start(world.left->call(fetch(500), std::chrono::hours(1)));
  world.settle();
  const net::TimePoint start = world.loop.now();
  world.network.kill("b");
  EXPECT_EQ(world.finish(call).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(world.loop.now(), start);
  world.loop.run_for(seconds(10));
  EXPECT_EQ(world.left_lost.size(), 1u);
}

TEST(Control, CancelsCallsWhenClosedHereAndTellsOnlyThePeer) {
  ControlWorld world;
  const auto call = world.start(world.left->call(fetch(500), std::chrono::hours(1)));
  world.settle();
  world.left->close();
  EXPECT_EQ(world.finish(call).error().code, ErrorCode::kCancelled);
  world.settle();
  EXPECT_TRUE(world.left_lost.empty());
  EXPECT_EQ(world.right_lost.size(), 1u);
}

TEST(Control, MayBeDestroyedWithCallsUnderWay) {
  ControlWorld world;
  const auto call = world.start(world.left->call(fetch(500), std::chrono::hours(1)));
  const auto other = world.start(world.left->call(fetch(3), std::chrono::hours(1)));
  world.settle();
  world.left.reset();
  world.right.reset();
  EXPECT_EQ(world.finish(call).error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(world.finish(other).ok());
}

TEST(Control, BoundsWhatWaitsToBeSent) {
  ControlWorld world({.queue_bytes_max = 1000});
  wire::ControlMessage notice;
  notice.mutable_chunk()->set_data(std::string(300, 'x'));
  int n_queued = 0;
  while (world.left->notify(notice).ok()) ++n_queued;
  EXPECT_EQ(n_queued, 3);
  EXPECT_EQ(world.left->notify(notice).error().code, ErrorCode::kResourceExhausted);
  world.settle();
  EXPECT_TRUE(world.left->notify(notice).ok());
}

TEST(Control, FlushReturnsWhenTheQueueHasLeftOrTimeIsUp) {
  ControlWorld world;
  world.network.silence("b");
  wire::ControlMessage notice;
  notice.mutable_chunk()->set_data(std::string(300'000, 'x'));  // More than the window takes.
  ASSERT_TRUE(world.left->notify(notice).ok());
  const net::TimePoint start = world.loop.now();
  world.loop.run(world.left->flush(seconds(1)));
  EXPECT_EQ(world.loop.now() - start, seconds(1));
  world.network.silence("b", false);
  world.loop.run(world.left->flush(seconds(5)));
  EXPECT_LT(world.loop.now() - start, seconds(2));
  world.settle();
  EXPECT_EQ(world.notices.size(), 1u);
}

TEST(Control, TurnsAwayMoreRequestsThanItMayHold) {
  ControlWorld world({.requests_max = 2});
  std::vector<std::shared_ptr<std::optional<Reply>>> calls;
  for (int i = 0; i < 3; ++i)
    calls.push_back(world.start(world.left->call(fetch(500), std::chrono::hours(2))));
  world.settle();
  EXPECT_FALSE(calls[0]->has_value());
  ASSERT_TRUE(calls[2]->has_value());
  EXPECT_EQ((**calls[2]).error().code, ErrorCode::kResourceExhausted);
}

/// A peer that speaks frames, but not as it should.
struct RawPeer : TestWorld {
  RawPeer() {
    ControlHandlers handlers;
    handlers.on_lost = [this](const Error& error) { lost.push_back(error); };
    right = std::make_unique<ControlConnection>(b, std::move(server), ControlOptions{}, handlers);
  }
  void send(FrameKind kind, const google::protobuf::MessageLite& message) {
    EXPECT_TRUE(loop.run(write_frame(*client, kind, message, kFrameBytesMax)).ok());
    settle();
  }
  std::vector<Error> lost;
  std::unique_ptr<ControlConnection> right;
};

TEST(Control, DropsAPeerThatBreaksTheRules) {
  RawPeer second_hello;
  second_hello.send(FrameKind::kHello, wire::Hello());
  ASSERT_EQ(second_hello.lost.size(), 1u);
  EXPECT_EQ(second_hello.lost[0].code, ErrorCode::kProtocol);

  RawPeer no_id;
  no_id.send(FrameKind::kRequest, fetch(1));
  ASSERT_EQ(no_id.lost.size(), 1u);
  EXPECT_EQ(no_id.lost[0].code, ErrorCode::kProtocol);
}

TEST(Control, SkipsWhatANewerPeerMaySend) {
  RawPeer peer;
  peer.send(static_cast<FrameKind>(99), wire::Ping());
  wire::ControlMessage stray = fetch(1);
  stray.set_id(123);
  peer.send(FrameKind::kReply, stray);
  peer.send(FrameKind::kNotice, wire::ControlMessage());
  EXPECT_TRUE(peer.lost.empty());
}

TEST(Control, SurvivesRandomDamage) {
  wire::ControlMessage request = fetch(7);
  request.set_id(1);
  request.mutable_fetch_chunk()->set_sha256(std::string(32, 's'));
  const std::vector<std::byte> good = *encode_frame(FrameKind::kRequest, request, kFrameBytesMax);
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    std::vector<std::byte> bytes = good;
    for (int i = 0; i < 2; ++i) bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.next());
    RawPeer peer;
    EXPECT_TRUE(peer.loop.run(peer.client->write(bytes)).ok());
    peer.loop.run_for(seconds(20));  // Without pongs it ends in any case.
    EXPECT_EQ(peer.lost.size(), 1u);
  }
}

}  // namespace
}  // namespace recua::rpc
