#pragma once
/// What the tests of src/rpc share: two simulated hosts and a connection between them.

#include <memory>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "net/sim/sim_network.h"
#include "rpc/handshake.h"

namespace recua::rpc {

struct TestWorld {
  explicit TestWorld(const net::SimOptions& options = {}) : network(loop, options) {
    std::tie(client, server) = connect();
  }

  net::SimLoop loop;
  net::SimNetwork network;
  net::Env a = network.env("a");
  net::Env b = network.env("b");
  std::unique_ptr<net::Listener> listener = *b.network->listen(net::Endpoint{"", 7500});
  std::unique_ptr<net::Connection> client;  // On a, to b:7500.
  std::unique_ptr<net::Connection> server;

  std::pair<std::unique_ptr<net::Connection>, std::unique_ptr<net::Connection>> connect() {
    auto from = *loop.run(a.network->connect(net::Endpoint{"b", 7500}, std::chrono::seconds(5)));
    auto to = *loop.run(listener->accept());
    return {std::move(from), std::move(to)};
  }

  /// Lets a coroutine run beside what comes next; its result when it is done.
  template <class T>
  std::shared_ptr<std::optional<T>> start(net::asio::awaitable<T> coroutine) {
    auto out = std::make_shared<std::optional<T>>();
    net::asio::co_spawn(loop.executor(), keep(std::move(coroutine), out), net::asio::detached);
    return out;
  }
  template <class T>
  T finish(const std::shared_ptr<std::optional<T>>& started) {
    const bool ended = loop.run_until([&] { return started->has_value(); });
    RECUA_CHECK(ended);
    return std::move(**started);
  }
  void settle() { loop.run_for(std::chrono::milliseconds(100)); }

 private:
  template <class T>
  static net::asio::awaitable<void> keep(net::asio::awaitable<T> coroutine,
                                         std::shared_ptr<std::optional<T>> out) {
    out->emplace(co_await std::move(coroutine));
  }
};

inline PeerInfo test_peer(std::string name) {
  PeerInfo out;
  out.name = std::move(name);
  out.software_version = "0.1.0";
  out.memory_free_bytes = 1000;
  out.memory_total_bytes = 2000;
  out.n_threads = 4;
  out.data_types = {0, 1, 8};
  return out;
}

}  // namespace recua::rpc
