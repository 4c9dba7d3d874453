#pragma once
/// Time as an argument, so that a simulation can bring its own.

#include <chrono>

#include <boost/asio/awaitable.hpp>

namespace recua::net {

namespace asio = boost::asio;

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

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

  asio::awaitable<void> sleep_for(Duration duration) { return sleep_until(now() + duration); }
};

}  // namespace recua::net
