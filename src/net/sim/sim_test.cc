#include <boost/asio/detached.hpp>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "net/sim/sim_network.h"

namespace recua::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::vector<std::byte> numbered(std::size_t n) {
  std::vector<std::byte> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>(i * 31 % 251);
  return out;
}

struct World {
  explicit World(const SimOptions& options = {}) : network(loop, options) {}

  SimLoop loop;
  SimNetwork network;
  std::unique_ptr<Listener> listener = *network.host("b").listen(Endpoint{"", 7500});

  std::pair<std::unique_ptr<Connection>, std::unique_ptr<Connection>> connect() {
    auto client = *loop.run(network.host("a").connect(Endpoint{"b", 7500}, seconds(5)));
    auto server = *loop.run(listener->accept());
    return {std::move(client), std::move(server)};
  }
  /// Starts writing and reading at once; the read's result.
  Result<void> transfer(Connection& from, Connection& to, std::span<const std::byte> bytes,
                        std::span<std::byte> out) {
    asio::co_spawn(loop.executor(), from.write(bytes), asio::detached);
    return loop.run(to.read(out));
  }
};

TEST(SimNetwork, DeliversInOrderThroughASmallWindow) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    World world({.seed = seed, .window_bytes = 1000, .segment_bytes = 77});
    auto [client, server] = world.connect();
    const std::vector<std::byte> bytes = numbered(20'000);
    std::vector<std::byte> out(bytes.size());
    ASSERT_TRUE(world.transfer(*client, *server, bytes, out).ok());
    EXPECT_EQ(out, bytes);
  }
}

TEST(SimNetwork, TakesTheSameVirtualTimeForTheSameSeed) {
  const auto took = [](std::uint64_t seed) {
    World world({.seed = seed, .window_bytes = 1000});
    const TimePoint start = world.loop.now();
    auto [client, server] = world.connect();
    const std::vector<std::byte> bytes = numbered(10'000);
    std::vector<std::byte> out(bytes.size());
    EXPECT_TRUE(world.transfer(*client, *server, bytes, out).ok());
    return world.loop.now() - start;
  };
  EXPECT_EQ(took(7), took(7));
  EXPECT_NE(took(7), took(8));
}

TEST(SimNetwork, BoundsWhatIsSentAndNotRead) {
  World world({.window_bytes = 100});
  auto [client, server] = world.connect();
  const std::vector<std::byte> bytes = numbered(300);
  const std::array<std::span<const std::byte>, 2> parts{std::span(bytes).first(30),
                                                        std::span(bytes).subspan(30)};
  EXPECT_EQ(*client->try_write(parts), 100u);
  EXPECT_EQ(*client->try_write(parts), 0u);
  bool writable = false;
  client->arm_write([&] { writable = true; });
  world.loop.run_for(seconds(1));
  EXPECT_FALSE(writable);
  std::vector<std::byte> out(40);
  EXPECT_EQ(*server->try_read(out), 40u);
  world.loop.run_for(seconds(1));
  EXPECT_TRUE(writable);
  EXPECT_EQ(*client->try_write(parts), 40u);
}

TEST(SimNetwork, WakesAnArmedReader) {
  World world;
  auto [client, server] = world.connect();
  int n_ready = 0;
  server->arm_read([&] { ++n_ready; });
  world.loop.run_for(seconds(1));
  EXPECT_EQ(n_ready, 0);
  const std::vector<std::byte> bytes = numbered(10);
  ASSERT_TRUE(world.loop.run(client->write(bytes)).ok());
  world.loop.run_for(seconds(1));
  EXPECT_EQ(n_ready, 1);
  server->arm_read([&] { ++n_ready; });  // Something is there already.
  world.loop.run_for(seconds(1));
  EXPECT_EQ(n_ready, 2);
}

TEST(SimNetwork, KnowsTheHostOfEachEnd) {
  World world;
  auto [client, server] = world.connect();
  EXPECT_EQ(client->local_address(), "a");
  EXPECT_EQ(server->local_address(), "b");
}

TEST(SimNetwork, TellsBothEndsWhenALinkIsCut) {
  World world;
  auto [client, server] = world.connect();
  world.network.cut("b", "a");
  std::vector<std::byte> out(1);
  EXPECT_EQ(world.loop.run(client->read(out)).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(server->try_read(out).error().code, ErrorCode::kUnavailable);
}

TEST(SimNetwork, GivesTheReaderWhatWasSentBeforeTheClose) {
  World world;
  auto [client, server] = world.connect();
  const std::vector<std::byte> bytes = numbered(10);
  ASSERT_TRUE(world.loop.run(client->write(bytes)).ok());
  client->close();
  std::vector<std::byte> out(10);
  ASSERT_TRUE(world.loop.run(server->read(out)).ok());
  const Result<void> end = world.loop.run(server->read(out));
  ASSERT_FALSE(end.ok());
  EXPECT_EQ(end.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(client->try_read(out).error().code, ErrorCode::kCancelled);
}

TEST(SimNetwork, HoldsBackWhatASilentHostSendsAndDeliversItInOrderLater) {
  World world({.segment_bytes = 10});
  auto [client, server] = world.connect();
  const std::vector<std::byte> bytes = numbered(200);
  world.network.silence("a");
  ASSERT_TRUE(world.loop.run(client->write(std::span(bytes).first(100))).ok());
  world.loop.run_for(seconds(10));
  std::vector<std::byte> out(200);
  EXPECT_EQ(*server->try_read(out), 0u);
  world.network.silence("a", false);
  ASSERT_TRUE(world.loop.run(client->write(std::span(bytes).subspan(100))).ok());
  ASSERT_TRUE(world.loop.run(server->read(out)).ok());
  EXPECT_EQ(out, bytes);
}

TEST(SimNetwork, FailsToConnectAsTcpDoes) {
  World world;
  const auto connect = [&](const char* host, std::uint16_t port) {
    Endpoint endpoint{host, port};
    return world.loop.run(world.network.host("a").connect(endpoint, seconds(2))).error().code;
  };
  EXPECT_EQ(connect("b", 1), ErrorCode::kUnavailable);
  EXPECT_EQ(connect("nowhere", 7500), ErrorCode::kUnavailable);
  world.network.partition("a", "b");
  EXPECT_EQ(connect("b", 7500), ErrorCode::kTimeout);
  world.network.partition("a", "b", false);
  world.network.refuse("b");
  EXPECT_EQ(connect("b", 7500), ErrorCode::kUnavailable);
  world.network.refuse("b", false);
  world.network.kill("b");
  EXPECT_EQ(connect("b", 7500), ErrorCode::kUnavailable);
}

TEST(SimLoop, JumpsOverSleep) {
  SimLoop loop;
  const TimePoint start = loop.now();
  loop.run(loop.sleep_for(std::chrono::hours(1) - seconds(1)));
  EXPECT_EQ(loop.now() - start, std::chrono::hours(1) - seconds(1));
}

TEST(SimLoop, EndsWithSleepersAndConnectionsStillAlive) {
  World world;
  auto [client, server] = world.connect();
  std::vector<std::byte> out(1);
  asio::co_spawn(world.loop.executor(), world.loop.sleep_for(seconds(5)), asio::detached);
  asio::co_spawn(world.loop.executor(), client->read(out), asio::detached);
  world.loop.run_for(milliseconds(1));
}

}  // namespace
}  // namespace recua::net
