#include "cluster/poll_loop.h"

#include <thread>
#include <utility>

namespace recua::cluster {
namespace {

boost::asio::awaitable<void> sleep(const net::Env& env, net::Event& wake) {
  const std::uint64_t seen = wake.n_notified();
  while (env.run_one && wake.n_notified() == seen) {
    if (!env.run_one()) break;  // A stopped loop does not resume us either.
  }
  if (wake.n_notified() == seen) co_await wake.wait();
}

}  // namespace

boost::asio::awaitable<Result<void>> poll_until(net::Env env, net::Event& wake,
                                                std::function<Result<bool>()> poll,
                                                std::function<void()> arm,
                                                std::function<bool()> done, net::SpinBudget* budget,
                                                net::ArmIn arm_in) {
  net::SpinBudget own(env.spin);
  if (budget == nullptr) budget = &own;
  net::DirectSleep direct(std::move(arm_in));
  const bool may_spin = env.spin > net::Duration::zero();
  net::TimePoint idle_since = env.clock->now();
  net::TimePoint moved_at = idle_since;
  bool waiting = false;  // Nothing has moved since moved_at.
  bool armed = false;    // And polled for nothing since then, or about to.
  bool just_woken = false;
  while (!done()) {
    RECUA_CO_ASSIGN_OR_RETURN(const bool moved, poll());
    if (moved && may_spin) {
      idle_since = env.clock->now();
      if (std::exchange(waiting, false)) budget->came_after(idle_since - moved_at);
      moved_at = idle_since;
    }
    if (moved) {
      // Most often that was all there is. Who cannot spin arms right away, and polls once less.
      armed = std::exchange(just_woken, false) && !may_spin;
      if (armed && !direct.arm()) arm();
      continue;
    }
    waiting = true;
    if (may_spin && !armed && env.clock->now() - idle_since < budget->current()) {
      std::this_thread::yield();  // With more spinners than processors, the others must get on.
      continue;
    }
    if (!armed) {
      // What came between the last poll and arming must not be slept over: poll once more.
      if (!direct.arm()) arm();
      armed = true;
      continue;
    }
    if (done()) break;
    armed = false;
    just_woken = true;
    if (direct.is_armed()) {
      if (!direct.sleep()) continue;
    } else {
      co_await sleep(env, wake);
    }
    if (may_spin) idle_since = env.clock->now();
  }
  co_return ok();
}

}  // namespace recua::cluster
