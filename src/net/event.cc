#include "net/event.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace recua::net {

Event::Event(const asio::any_io_executor& executor)
    : timer_(executor, asio::steady_timer::time_point::max()) {}

asio::awaitable<void> Event::wait() {
  co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
}

void Event::notify_all() {
  ++n_notified_;
  timer_.cancel();
}

}  // namespace recua::net
