#include "net/deadline.h"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <fmt/format.h>

namespace recua::net {

struct DeadlineGuard::State {
  Connection* connection = nullptr;  // Null once the guard is gone.
  Duration timeout{};
  std::string waited_for;
  bool expired = false;
  asio::cancellation_signal cancel;
};

namespace {

/// The sleep of one guard. It owns a share of the state, so either may end first.
template <class State>
asio::awaitable<void> close_at(std::shared_ptr<State> state, Clock* clock, TimePoint deadline) {
  co_await asio::this_coro::throw_if_cancelled(false);
  if (state->connection == nullptr) co_return;
  co_await clock->sleep_until(deadline);
  if (state->connection == nullptr || clock->now() < deadline) co_return;
  state->expired = true;
  state->connection->close();
}

}  // namespace

DeadlineGuard::DeadlineGuard(const Env& env, Connection& connection, Duration timeout,
                             std::string waited_for)
    : state_(std::make_shared<State>()) {
  state_->connection = &connection;
  state_->timeout = timeout;
  state_->waited_for = std::move(waited_for);
  const TimePoint deadline = env.clock->now() + timeout;
  asio::awaitable<void> sleep = close_at(state_, env.clock, deadline);
  asio::co_spawn(env.executor, std::move(sleep),
                 asio::bind_cancellation_slot(state_->cancel.slot(), asio::detached));
}

DeadlineGuard::~DeadlineGuard() {
  state_->connection = nullptr;
  state_->cancel.emit(asio::cancellation_type::terminal);
}

bool DeadlineGuard::expired() const { return state_->expired; }

Error DeadlineGuard::explain(Error error) const {
  if (!state_->expired) return error;
  return Error{ErrorCode::kTimeout,
               fmt::format("no {} within {}", state_->waited_for, to_string(state_->timeout))};
}

std::string to_string(Duration duration) {
  const auto ns = duration.count();
  if (ns % 1'000'000'000 == 0) return fmt::format("{} s", ns / 1'000'000'000);
  if (ns % 1'000'000 == 0) return fmt::format("{} ms", ns / 1'000'000);
  if (ns % 1'000 == 0) return fmt::format("{} us", ns / 1'000);
  return fmt::format("{} ns", ns);
}

}  // namespace recua::net
