#pragma once
/// Event: coroutines of one loop wait for something that other code of the same loop makes true.
///
/// Not counted and not sticky: check the condition, wait, check again. Takes no time of any clock,
/// so it serves real and simulated programs alike. The waiting coroutine must keep the Event alive
/// (by the shared state that both live in): a destroyed Event wakes its waiters, who then look at
/// freed memory if they go on using it. Threads: the loop's only.

#include <cstdint>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

namespace recua::net {

namespace asio = boost::asio;

class Event {
 public:
  explicit Event(const asio::any_io_executor& executor);
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Returns after the next notify_all(), or when the coroutine is cancelled (throws nothing then).
  asio::awaitable<void> wait();
  void notify_all();
  /// Calls of notify_all() so far: for who sleeps in another way than by wait().
  [[nodiscard]] std::uint64_t n_notified() const { return n_notified_; }

 private:
  asio::steady_timer timer_;  // Never expires; cancelling it is the notification.
  std::uint64_t n_notified_ = 0;
};

}  // namespace recua::net
