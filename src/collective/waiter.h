#pragma once
/// How a rank sleeps when polling has brought nothing for a while: the loop that its channels were
/// made with runs until something calls back.

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "net/clock.h"

namespace recua::collective {

class Waiter {
 public:
  Waiter() = default;
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  virtual ~Waiter() = default;

  /// Runs the loop until it has called something or the time has come. May return for nothing.
  virtual void sleep_until(net::TimePoint when) = 0;
  /// Ends a sleep, the one under way or the next one. Any thread.
  virtual void wake() = 0;
};

/// For real: an Asio loop that nobody else runs. Times are of net::RealClock.
class LoopWaiter final : public Waiter {
 public:
  /// The loop outlives this.
  explicit LoopWaiter(net::asio::io_context& loop) : loop_(loop), work_(loop.get_executor()) {}
  void sleep_until(net::TimePoint when) override;
  void wake() override;

 private:
  net::asio::io_context& loop_;
  net::asio::executor_work_guard<net::asio::io_context::executor_type> work_;
};

}  // namespace recua::collective
