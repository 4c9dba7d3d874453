#pragma once
/// SimLoop: one thread, one Asio loop, virtual time. Nothing sleeps: when no handler is ready, the
/// clock jumps to the next planned event. The same seed and program give the same run.
///
///   SimLoop loop;
///   Result<int> out = loop.run(some_coroutine(env));

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <optional>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "base/check.h"
#include "net/clock.h"

namespace recua::net {

class SimLoop : public Clock {
 public:
  SimLoop() = default;
  ~SimLoop() override;

  [[nodiscard]] asio::any_io_executor executor() { return io_.get_executor(); }
  [[nodiscard]] TimePoint now() const override { return now_; }
  asio::awaitable<void> sleep_until(TimePoint when) override;
  std::unique_ptr<Timer> start_timer(const asio::any_io_executor& executor, TimePoint when,
                                     std::function<void()> expired) override;

  /// An event of the simulated world. Events of one instant run in the order in which they were
  /// planned.
  using EventId = std::pair<TimePoint, std::uint64_t>;
  EventId schedule(TimePoint when, std::function<void()> event);
  void cancel(const EventId& id) { events_.erase(id); }

  /// Runs what is ready; if nothing was, moves the clock to the next event and runs that. False
  /// when nothing is left that could ever happen.
  bool run_one_or_advance();
  /// Runs until the condition holds. False when nothing is left or the limit of virtual time
  /// passed.
  bool run_until(const std::function<bool()>& condition, Duration limit = std::chrono::hours(1));
  /// Runs everything that happens within the next `duration` and leaves the clock there.
  void run_for(Duration duration);

  /// Runs a coroutine to its end and returns its result. A deadlock is a failed check.
  template <class T>
  T run(asio::awaitable<T> coroutine) {
    std::optional<T> out;
    std::exception_ptr thrown;
    bool ended = false;
    asio::awaitable<void> stored = store(std::move(coroutine), out);
    asio::co_spawn(io_, std::move(stored), [&](std::exception_ptr error) {
      thrown = error;
      ended = true;
    });
    const bool finished = run_until([&] { return ended; });
    RECUA_CHECK(finished && "the coroutine waits for something that will never happen");
    if (thrown) std::rethrow_exception(thrown);
    return std::move(*out);
  }
  void run(asio::awaitable<void> coroutine) { run(with_value(std::move(coroutine))); }

 private:
  template <class T>
  static asio::awaitable<void> store(asio::awaitable<T> coroutine, std::optional<T>& out) {
    out.emplace(co_await std::move(coroutine));
  }
  static asio::awaitable<bool> with_value(asio::awaitable<void> coroutine) {
    co_await std::move(coroutine);
    co_return true;
  }

  // Before io_: coroutines that die with the loop still cancel their sleeps.
  std::map<EventId, std::function<void()>> events_;
  bool ending_ = false;
  std::uint64_t n_scheduled_ = 0;
  TimePoint now_{std::chrono::hours(1000)};
  asio::io_context io_{1};
};

}  // namespace recua::net
