#include "cluster/poll_loop.h"

#include <thread>
#include <utility>

namespace recua::cluster {

boost::asio::awaitable<Result<void>> poll_until(net::Env env, net::Event& wake,
                                                std::function<Result<bool>()> poll,
                                                std::function<void()> arm,
                                                std::function<bool()> done, SpinBudget* budget) {
  SpinBudget own(env.spin);
  if (budget == nullptr) budget = &own;
  net::TimePoint idle_since = env.clock->now();
  net::TimePoint moved_at = idle_since;
  bool waiting = false;  // Nothing has moved since moved_at.
  bool armed_before_poll = false;
  while (!done()) {
    RECUA_CO_ASSIGN_OR_RETURN(const bool moved, poll());
    if (moved) {
      idle_since = env.clock->now();
      if (std::exchange(waiting, false)) budget->came_after(idle_since - moved_at);
      moved_at = idle_since;
      armed_before_poll = false;
      continue;
    }
    waiting = true;
    if (env.clock->now() - idle_since < budget->current()) {
      std::this_thread::yield();  // With more spinners than processors, the others must get on.
      continue;
    }
    if (!armed_before_poll) {
      // What came between the last poll and arming must not be slept over: poll once more.
      arm();
      armed_before_poll = true;
      continue;
    }
    if (done()) break;
    co_await wake.wait();
    idle_since = env.clock->now();
    armed_before_poll = false;
  }
  co_return ok();
}

}  // namespace recua::cluster
