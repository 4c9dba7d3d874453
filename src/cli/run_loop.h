#pragma once
/// The loop of a command: what lives on it gets the real world, and code that is no coroutine a
/// coroutine's result.

#include <cstdint>
#include <exception>
#include <optional>
#include <random>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "base/check.h"
#include "net/connection.h"

namespace recua::cli {

namespace detail {
template <class T>
boost::asio::awaitable<void> store_result(boost::asio::awaitable<T> coroutine,
                                          std::optional<T>& out) {
  out.emplace(co_await std::move(coroutine));
}
}  // namespace detail

/// What is given outlives the Env.
inline net::Env real_env(boost::asio::io_context& loop, net::Clock& clock, net::Network& network) {
  net::Env env;
  env.executor = loop.get_executor();
  env.clock = &clock;
  env.network = &network;
  env.random = [] {
    std::random_device device;  // One for each call: links call it from their own threads.
    return (std::uint64_t{device()} << 32) | device();
  };
  return env;
}

/// Runs the loop until the coroutine has ended, not longer: what else lives on the loop
/// (heartbeats of workers) goes on with the next call.
template <class T>
T run_on(boost::asio::io_context& loop, boost::asio::awaitable<T> coroutine) {
  std::optional<T> out;
  std::exception_ptr thrown;
  bool is_done = false;
  // Asio would need a T that can be made of nothing, which a Result cannot.
  auto store = detail::store_result(std::move(coroutine), out);
  boost::asio::co_spawn(loop, std::move(store), [&](const std::exception_ptr& error) {
    thrown = error;
    is_done = true;
  });
  loop.restart();
  while (!is_done) RECUA_CHECK(loop.run_one() > 0);
  if (thrown) std::rethrow_exception(thrown);
  return std::move(*out);
}

}  // namespace recua::cli
