#pragma once
/// How a data path waits: it polls, spins for a short time, and then sleeps until it is woken.

#include <functional>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "net/connection.h"
#include "net/direct_sleep.h"
#include "net/event.h"
#include "net/spin_budget.h"

namespace recua::cluster {

/// Calls poll until done() or an error. While poll returns true (something moved) it is called
/// again at once; then for as long as the budget says, giving the processor to others in between;
/// then arm() is called, which must lead to wake.notify_all() when poll can move something, and the
/// coroutine sleeps. Where env.run_one is set it does so within its handler, so that loop must not
/// be an io_context{1}, which keeps back what the handler has posted. Spinning blocks the loop, so
/// env.spin is kept well below a millisecond. arm_in: where there is one, waits that end within
/// kDirectWait are spent in a set, which is cheaper to be woken from; the loop rests meanwhile.
/// budget: for callers who come again and again; else one of env.spin lives as long as the call.
boost::asio::awaitable<Result<void>> poll_until(
    net::Env env, net::Event& wake, std::function<Result<bool>()> poll, std::function<void()> arm,
    std::function<bool()> done, net::SpinBudget* budget = nullptr, net::ArmIn arm_in = {});

}  // namespace recua::cluster
