#pragma once
/// DeadlineGuard: closes a connection when time is up, so that whatever waits on it fails, and then
/// tells that failure apart from others.
///
///   DeadlineGuard guard(env, connection, std::chrono::seconds(5), "Hello from " +
///   connection.peer()); auto result = co_await connection.read(bytes); if (!result.ok()) co_return
///   guard.explain(std::move(result).error());
///
/// The connection outlives the guard. A guard that is destroyed in time cancels its timer at once,
/// so that a loop runs out of work. Threads: the connection's loop only.

#include <memory>
#include <string>

#include "net/connection.h"

namespace recua::net {

class DeadlineGuard {
 public:
  /// waited_for completes "no ... within 5 s".
  DeadlineGuard(const Env& env, Connection& connection, Duration timeout, std::string waited_for);
  DeadlineGuard(const DeadlineGuard&) = delete;
  DeadlineGuard& operator=(const DeadlineGuard&) = delete;

  [[nodiscard]] bool expired() const { return expired_; }
  /// kTimeout, naming what was waited for and how long, when the deadline passed; else the error as
  /// it is.
  [[nodiscard]] Error explain(Error error) const;

 private:
  Duration timeout_;
  std::string waited_for_;
  bool expired_ = false;
  std::unique_ptr<Timer> timer_;
};

/// "5 s", "150 ms", "20 us": the largest unit that divides it.
std::string to_string(Duration duration);

}  // namespace recua::net
