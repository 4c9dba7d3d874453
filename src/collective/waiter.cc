#include "collective/waiter.h"

#include <boost/asio/post.hpp>

namespace recua::collective {

void LoopWaiter::sleep_until(net::TimePoint when) {
  if (loop_.stopped()) loop_.restart();
  loop_.run_one_until(when);
}

void LoopWaiter::wake() {
  net::asio::post(loop_, [] {});
}

}  // namespace recua::collective
