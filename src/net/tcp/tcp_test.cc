#include <atomic>
#include <thread>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"

namespace recua::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ConnectionPtr = std::unique_ptr<Connection>;

std::vector<std::byte> numbered(std::size_t n) {
  std::vector<std::byte> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>(i * 31 % 251);
  return out;
}

class Tcp : public testing::Test {
 protected:
  template <class T>
  void start(asio::awaitable<Result<T>> coroutine, std::optional<Result<T>>& out) {
    asio::co_spawn(io, keep(std::move(coroutine), out), asio::detached);
  }
  void run() {
    io.restart();
    io.run();
  }
  template <class T>
  Result<T> finish(asio::awaitable<Result<T>> coroutine) {
    std::optional<Result<T>> out;
    start(std::move(coroutine), out);
    run();
    return std::move(*out);
  }
  std::pair<ConnectionPtr, ConnectionPtr> connect(const Endpoint& where) {
    auto listener = *network.listen(where);
    std::optional<Result<ConnectionPtr>> client;
    std::optional<Result<ConnectionPtr>> server;
    start(network.connect(listener->endpoint(), seconds(5)), client);
    start(listener->accept(), server);
    run();
    EXPECT_TRUE(client->ok()) << client->error().message;
    return {std::move(**client), std::move(**server)};
  }

  asio::io_context io{1};
  TcpNetwork network{io.get_executor()};

 private:
  template <class T>
  static asio::awaitable<void> keep(asio::awaitable<Result<T>> coroutine,
                                    std::optional<Result<T>>& out) {
    out.emplace(co_await std::move(coroutine));
  }
};

TEST_F(Tcp, CarriesBytesOverBothFamilies) {
  for (const char* host : {"127.0.0.1", "::1", "localhost"}) {
    SCOPED_TRACE(host);
    if (!network.listen(Endpoint{host, 0}).ok()) continue;  // No IPv6 here.
    auto [client, server] = connect(Endpoint{host, 0});
    const std::vector<std::byte> bytes = numbered(1'000'000);
    std::vector<std::byte> out(bytes.size());
    std::optional<Result<void>> written;
    std::optional<Result<void>> read;
    start(client->write(bytes), written);
    start(server->read(out), read);
    run();
    EXPECT_TRUE(written->ok());
    EXPECT_TRUE(read->ok());
    EXPECT_EQ(out, bytes);
  }
}

TEST_F(Tcp, ListensOnAllAddressesOfBothFamilies) {
  auto listener = *network.listen(Endpoint{"", 0});
  const std::uint16_t port = listener->endpoint().port;
  EXPECT_NE(port, 0);
  std::optional<Result<ConnectionPtr>> client;
  std::optional<Result<ConnectionPtr>> server;
  start(network.connect(Endpoint{"127.0.0.1", port}, seconds(5)), client);
  start(listener->accept(), server);
  run();
  ASSERT_TRUE(client->ok());
  EXPECT_EQ((**server)->peer().substr(0, 10), "127.0.0.1:") << (**server)->peer();
  EXPECT_EQ((**client)->local_address(), "127.0.0.1");
  EXPECT_EQ((**server)->local_address(), "127.0.0.1");  // Though its socket is an IPv6 one.
  (**server)->close();
  EXPECT_EQ((**server)->local_address(), "");
}

TEST_F(Tcp, SaysWhyItCannotConnect) {
  std::uint16_t port = 0;
  {
    port = (*network.listen(Endpoint{"127.0.0.1", 0}))->endpoint().port;
  }
  const auto refused = finish(network.connect(Endpoint{"127.0.0.1", port}, seconds(5)));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(refused.error().message.find("refused"), std::string::npos);
  const auto unknown = finish(network.connect(Endpoint{"no.such.host.invalid", 1}, seconds(20)));
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("no.such.host.invalid"), std::string::npos);
}

TEST_F(Tcp, SaysThatAPortIsTaken) {
  auto listener = *network.listen(Endpoint{"127.0.0.1", 0});
  const auto second = network.listen(listener->endpoint());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("another program"), std::string::npos);
}

TEST_F(Tcp, TellsPeerCloseFromOwnClose) {
  auto [client, server] = connect(Endpoint{"127.0.0.1", 0});
  std::vector<std::byte> out(1);
  server->close();
  const Result<void> ended = finish(client->read(out));
  EXPECT_EQ(ended.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(client->try_read(out).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(finish(server->read(out)).error().code, ErrorCode::kCancelled);
}

TEST_F(Tcp, FailsAPendingReadWhenClosedOrDestroyed) {
  auto [client, server] = connect(Endpoint{"127.0.0.1", 0});
  std::vector<std::byte> out(1);
  std::optional<Result<void>> first;
  std::optional<Result<void>> second;
  start(client->read(out), first);
  start(server->read(out), second);
  io.restart();
  io.poll();
  client->close();
  server.reset();
  run();
  EXPECT_EQ(first->error().code, ErrorCode::kCancelled);
  EXPECT_EQ(second->error().code, ErrorCode::kCancelled);
}

TEST_F(Tcp, FailsAPendingAcceptWhenClosed) {
  auto listener = *network.listen(Endpoint{"127.0.0.1", 0});
  std::optional<Result<ConnectionPtr>> accepted;
  start(listener->accept(), accepted);
  io.poll();
  listener.reset();
  run();
  EXPECT_EQ(accepted->error().code, ErrorCode::kCancelled);
}

TEST_F(Tcp, GathersPartsInOneWrite) {
  auto [client, server] = connect(Endpoint{"127.0.0.1", 0});
  const std::vector<std::byte> bytes = numbered(300);
  const std::array<std::span<const std::byte>, 4> parts{
      std::span(bytes).first(64), std::span(bytes).subspan(64, 200), std::span<const std::byte>{},
      std::span(bytes).subspan(264)};
  EXPECT_EQ(*client->try_write(parts), 300u);
  std::vector<std::byte> out(300);
  EXPECT_TRUE(finish(server->read(out)).ok());
  EXPECT_EQ(out, bytes);
}

// The way of a data channel: handed to another thread's loop, polled there, asleep in between.
TEST_F(Tcp, MovesToAnotherThreadsLoopAndWakesItThere) {
  auto [client, server] = connect(Endpoint{"127.0.0.1", 0});
  const std::vector<std::byte> bytes = numbered(100'000);
  std::vector<std::byte> out(bytes.size());
  std::atomic<bool> armed = false;

  std::jthread reader([&, moving = std::move(server)]() mutable {
    asio::io_context own{1};
    auto connection = *moving->move_to(own.get_executor());
    std::size_t n = 0;
    while (n < out.size()) {
      const Result<std::size_t> got = connection->try_read(std::span(out).subspan(n));
      ASSERT_TRUE(got.ok()) << got.error().message;
      n += *got;
      if (*got > 0) continue;
      bool ready = false;
      connection->arm_read([&] { ready = true; });
      armed = true;
      own.restart();
      while (!ready) own.run_one();
    }
  });
  while (!armed) std::this_thread::yield();
  ASSERT_TRUE(finish(client->write(bytes)).ok());
  reader.join();
  EXPECT_EQ(out, bytes);
}

TEST_F(Tcp, WakesAWriterWhenTheReaderMadeRoom) {
  auto [client, server] = connect(Endpoint{"127.0.0.1", 0});
  const std::vector<std::byte> bytes = numbered(1 << 20);
  const std::array<std::span<const std::byte>, 1> parts{std::span(bytes)};
  std::size_t n_sent = 0;
  while (true) {
    const std::size_t n = *client->try_write(parts);
    if (n == 0) break;
    n_sent += n;
  }
  bool ready = false;
  client->arm_write([&] { ready = true; });
  std::vector<std::byte> out(n_sent);
  EXPECT_TRUE(finish(server->read(out)).ok());
  while (!ready) io.run_one();
  EXPECT_GT(*client->try_write(parts), 0u);
}

TEST(RealClock, SleepsUntilItsTime) {
  asio::io_context io;
  RealClock clock;
  const TimePoint start = clock.now();
  asio::co_spawn(io, clock.sleep_for(milliseconds(2)), asio::detached);
  io.run();
  EXPECT_GE(clock.now() - start, milliseconds(2));
}

}  // namespace
}  // namespace recua::net
