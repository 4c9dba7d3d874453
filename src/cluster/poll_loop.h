#pragma once
/// How a data path waits: it polls, spins for a short time, and then sleeps until it is woken.

#include <chrono>
#include <functional>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "net/connection.h"
#include "net/event.h"

namespace recua::cluster {

/// Calls poll until done() or an error. While poll returns true (something moved) it is called
/// again at once; then for env.spin longer, giving the processor to others in between; then arm()
/// is called, which must lead to wake.notify_all() when poll can move something, and the coroutine
/// sleeps. Spinning blocks the loop, so env.spin is kept well below a millisecond.
boost::asio::awaitable<Result<void>> poll_until(net::Env env, net::Event& wake,
                                                std::function<Result<bool>()> poll,
                                                std::function<void()> arm,
                                                std::function<bool()> done);

}  // namespace recua::cluster
