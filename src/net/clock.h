#pragma once
/// Time as an argument, so that a simulation can bring its own.

#include <chrono>
#include <functional>
#include <memory>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

namespace recua::net {

namespace asio = boost::asio;

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

/// A call that waits for its time. Destroying it cancels the call.
class Timer {
 public:
  Timer() = default;
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  virtual ~Timer() = default;
};

class Clock {
 public:
  Clock() = default;
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  virtual ~Clock() = default;

  [[nodiscard]] virtual TimePoint now() const = 0;
  /// Returns at `when`, or earlier when the coroutine's cancellation slot is used (it then throws
  /// nothing: the caller looks at the clock).
  virtual asio::awaitable<void> sleep_until(TimePoint when) = 0;

  /// Calls `expired` from the executor's loop at `when`, unless the timer is destroyed before. It
  /// may be destroyed from inside the call. A cancelled timer keeps no loop busy.
  virtual std::unique_ptr<Timer> start_timer(const asio::any_io_executor& executor, TimePoint when,
                                             std::function<void()> expired) = 0;

  asio::awaitable<void> sleep_for(Duration duration) { return sleep_until(now() + duration); }
};

}  // namespace recua::net
