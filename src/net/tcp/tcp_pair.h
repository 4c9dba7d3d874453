#pragma once
/// Both ends of a TCP connection over loopback, for tests and benchmarks.

#include <chrono>
#include <memory>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>

#include "base/check.h"
#include "net/tcp/tcp_network.h"

namespace recua::net {

struct TcpPair {
  std::unique_ptr<Connection> client;
  std::unique_ptr<Connection> server;
};

/// network: of that loop, which runs until both are there and is left as if it had not.
inline TcpPair connect_over_loopback(asio::io_context& loop, TcpNetwork& network) {
  const auto take = [](asio::awaitable<Result<std::unique_ptr<Connection>>> coroutine,
                       std::unique_ptr<Connection>& out) -> asio::awaitable<void> {
    auto result = co_await std::move(coroutine);
    RECUA_CHECK(result.ok());
    out = std::move(*result);
  };
  TcpPair pair;
  auto listener = *network.listen({.host = "127.0.0.1", .port = 0});
  asio::co_spawn(loop,
                 take(network.connect(listener->endpoint(), std::chrono::seconds(5)), pair.client),
                 asio::detached);
  asio::co_spawn(loop, take(listener->accept(), pair.server), asio::detached);
  loop.run();
  loop.restart();
  return pair;
}

}  // namespace recua::net
