#pragma once
/// How a data path waits: it polls, spins for a short time, and then sleeps until it is woken.

#include <algorithm>
#include <chrono>
#include <functional>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "net/connection.h"
#include "net/event.h"

namespace recua::cluster {

/// How long to poll before sleeping: the whole limit while what is awaited comes within it, half as
/// long each time that it does not, down to a sixteenth. So links that are waited for longer than
/// polling can bridge cost little, and one quick answer brings the full time back.
class SpinBudget {
 public:
  explicit SpinBudget(net::Duration limit) : limit_(limit), current_(limit) {}
  [[nodiscard]] net::Duration current() const { return current_; }
  /// Something came after so long, whether it was slept for or not.
  void came_after(net::Duration waited) {
    current_ = waited <= limit_ ? limit_ : std::max(current_ / 2, limit_ / 16);
  }

 private:
  net::Duration limit_;
  net::Duration current_;
};

/// Calls poll until done() or an error. While poll returns true (something moved) it is called
/// again at once; then for as long as the budget says, giving the processor to others in between;
/// then arm() is called, which must lead to wake.notify_all() when poll can move something, and the
/// coroutine sleeps. Spinning blocks the loop, so env.spin is kept well below a millisecond.
/// budget: for callers who come again and again; else one of env.spin lives as long as the call.
boost::asio::awaitable<Result<void>> poll_until(net::Env env, net::Event& wake,
                                                std::function<Result<bool>()> poll,
                                                std::function<void()> arm,
                                                std::function<bool()> done,
                                                SpinBudget* budget = nullptr);

}  // namespace recua::cluster
