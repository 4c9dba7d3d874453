#pragma once
/// A coroutine's result for code that is not one.

#include <exception>
#include <optional>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "base/check.h"

namespace recua::cli {

namespace detail {
template <class T>
boost::asio::awaitable<void> store_result(boost::asio::awaitable<T> coroutine,
                                          std::optional<T>& out) {
  out.emplace(co_await std::move(coroutine));
}
}  // namespace detail

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
