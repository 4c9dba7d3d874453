#include "net/real_clock.h"

#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace recua::net {
namespace {

class RealTimer : public Timer {
 public:
  RealTimer(const asio::any_io_executor& executor, TimePoint when, std::function<void()> expired)
      : call_(std::make_shared<std::function<void()>>(std::move(expired))), timer_(executor, when) {
    timer_.async_wait([call = call_](boost::system::error_code cancelled) {
      if (cancelled || !*call) return;
      const std::function<void()> expired_now = std::exchange(*call, {});
      expired_now();
    });
  }
  ~RealTimer() override { *call_ = {}; }  // The handler may be queued already.

 private:
  std::shared_ptr<std::function<void()>> call_;
  asio::steady_timer timer_;
};

}  // namespace

TimePoint RealClock::now() const { return std::chrono::steady_clock::now(); }

asio::awaitable<void> RealClock::sleep_until(TimePoint when) {
  asio::steady_timer timer(co_await asio::this_coro::executor, when);
  co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
}

std::unique_ptr<Timer> RealClock::start_timer(const asio::any_io_executor& executor, TimePoint when,
                                              std::function<void()> expired) {
  return std::make_unique<RealTimer>(executor, when, std::move(expired));
}

}  // namespace recua::net
