#pragma once
/// Signal: one coroutine sleeps until somebody on the same loop calls notify().
///
/// A notification before the wait is remembered (once). Threads: the loop's only; from elsewhere
/// post the notify() there.

#include <chrono>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace recua::net {

class Signal {
 public:
  explicit Signal(const boost::asio::any_io_executor& executor)
      : timer_(executor, std::chrono::steady_clock::time_point::max()) {}

  void notify() {
    notified_ = true;
    timer_.cancel();
  }

  boost::asio::awaitable<void> wait() {
    if (!notified_) {
      boost::system::error_code cancelled;  // Cancelling is how notify() wakes us.
      co_await timer_.async_wait(
          boost::asio::redirect_error(boost::asio::use_awaitable, cancelled));
    }
    notified_ = false;
  }

 private:
  boost::asio::steady_timer timer_;
  bool notified_ = false;
};

}  // namespace recua::net
