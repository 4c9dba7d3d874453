#include "net/sim/sim_loop.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "net/event.h"

namespace recua::net {
namespace {

class SimTimer : public Timer {
 public:
  SimTimer(SimLoop& loop, TimePoint when, std::function<void()> expired)
      : loop_(loop), id_(loop.schedule(when, std::move(expired))) {}
  ~SimTimer() override { loop_.cancel(id_); }

 private:
  SimLoop& loop_;
  SimLoop::EventId id_;
};

}  // namespace

SimLoop::~SimLoop() {
  ending_ = true;
  // What events own may use the loop, so they go first, and out of the map before they do.
  const auto events = std::exchange(events_, {});
}

asio::awaitable<void> SimLoop::sleep_until(TimePoint when) {
  if (when <= now_) co_return;
  // Shared: the event may fire although the coroutine is being torn down.
  const auto wake = std::make_shared<Event>(executor());
  const EventId id = schedule(when, [wake] { wake->notify_all(); });
  co_await wake->wait();
  cancel(id);
}

std::unique_ptr<Timer> SimLoop::start_timer(const asio::any_io_executor&, TimePoint when,
                                            std::function<void()> expired) {
  return std::make_unique<SimTimer>(*this, when, std::move(expired));
}

SimLoop::EventId SimLoop::schedule(TimePoint when, std::function<void()> event) {
  const EventId id{std::max(when, now_), n_scheduled_++};
  if (!ending_) events_.emplace(id, std::move(event));
  return id;
}

bool SimLoop::run_one_or_advance() {
  io_.restart();
  if (io_.poll() > 0) return true;
  if (events_.empty()) return false;
  auto node = events_.extract(events_.begin());
  now_ = node.key().first;
  node.mapped()();
  return true;
}

bool SimLoop::run_until(const std::function<bool()>& condition, Duration limit) {
  const TimePoint end = now_ + limit;
  while (!condition()) {
    if (now_ > end || !run_one_or_advance()) return condition();
  }
  return true;
}

void SimLoop::run_for(Duration duration) {
  const TimePoint end = now_ + duration;
  while (true) {
    io_.restart();
    if (io_.poll() > 0) continue;
    if (events_.empty() || events_.begin()->first.first > end) break;
    run_one_or_advance();
  }
  now_ = end;
}

}  // namespace recua::net
