#include "net/deadline.h"

#include <gtest/gtest.h>

#include "net/sim/sim_network.h"

namespace recua::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Pair {
  std::unique_ptr<Connection> client;
  std::unique_ptr<Connection> server;
};

asio::awaitable<Result<Pair>> connect_pair(Env client, Env server) {
  RECUA_CO_ASSIGN_OR_RETURN(auto listener, server.network->listen(Endpoint{"", 7500}));
  Endpoint endpoint = listener->endpoint();
  Pair pair;
  RECUA_CO_ASSIGN_OR_RETURN(pair.client, co_await client.network->connect(endpoint, seconds(5)));
  RECUA_CO_ASSIGN_OR_RETURN(pair.server, co_await listener->accept());
  co_return pair;
}

asio::awaitable<Result<void>> read_with_deadline(const Env& env, Connection& connection,
                                                 std::span<std::byte> out, Duration timeout) {
  DeadlineGuard guard(env, connection, timeout, "answer from " + connection.peer());
  Result<void> result = co_await connection.read(out);
  if (!result.ok()) co_return guard.explain(std::move(result).error());
  co_return ok();
}

TEST(DeadlineGuard, TurnsSilenceIntoATimeoutThatSaysWhatWasMissing) {
  SimLoop loop;
  SimNetwork network(loop, {});
  const Env a = network.env("a");
  Pair pair = *loop.run(connect_pair(a, network.env("b")));
  std::array<std::byte, 4> bytes;
  const TimePoint start = loop.now();
  const Result<void> out = loop.run(read_with_deadline(a, *pair.client, bytes, milliseconds(1500)));
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.error().code, ErrorCode::kTimeout);
  EXPECT_EQ(out.error().message, "no answer from b:7500 within 1500 ms");
  EXPECT_EQ(loop.now() - start, milliseconds(1500));
}

TEST(DeadlineGuard, LeavesOtherErrorsAlone) {
  SimLoop loop;
  SimNetwork network(loop, {});
  const Env a = network.env("a");
  Pair pair = *loop.run(connect_pair(a, network.env("b")));
  pair.server->close();
  std::array<std::byte, 4> bytes;
  const Result<void> out = loop.run(read_with_deadline(a, *pair.client, bytes, seconds(5)));
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.error().code, ErrorCode::kUnavailable);
}

TEST(DeadlineGuard, CancelsItsTimerWhenTheWorkIsDone) {
  SimLoop loop;
  SimNetwork network(loop, {});
  const Env a = network.env("a");
  Pair pair = *loop.run(connect_pair(a, network.env("b")));
  const TimePoint start = loop.now();
  std::array<std::byte, 4> bytes{};
  ASSERT_TRUE(loop.run(pair.server->write(bytes)).ok());
  ASSERT_TRUE(loop.run(read_with_deadline(a, *pair.client, bytes, seconds(60))).ok());
  while (loop.run_one_or_advance()) {
  }
  EXPECT_LT(loop.now() - start, seconds(1));
}

TEST(DeadlineGuard, MayDieBeforeTheLoopRuns) {
  SimLoop loop;
  SimNetwork network(loop, {});
  const Env a = network.env("a");
  Pair pair = *loop.run(connect_pair(a, network.env("b")));
  {
    const DeadlineGuard guard(a, *pair.client, seconds(1), "nothing");
  }
  pair.client.reset();
  while (loop.run_one_or_advance()) {
  }
}

TEST(Duration, PrintsItsLargestWholeUnit) {
  EXPECT_EQ(to_string(seconds(5)), "5 s");
  EXPECT_EQ(to_string(milliseconds(150)), "150 ms");
  EXPECT_EQ(to_string(std::chrono::microseconds(20)), "20 us");
}

}  // namespace
}  // namespace recua::net
