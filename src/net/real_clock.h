#pragma once
/// RealClock: the machine's steady clock. Threads: any; a sleep belongs to its coroutine's loop.

#include "net/clock.h"

namespace recua::net {

class RealClock : public Clock {
 public:
  [[nodiscard]] TimePoint now() const override;
  asio::awaitable<void> sleep_until(TimePoint when) override;
  std::unique_ptr<Timer> start_timer(const asio::any_io_executor& executor, TimePoint when,
                                     std::function<void()> expired) override;
};

}  // namespace recua::net
