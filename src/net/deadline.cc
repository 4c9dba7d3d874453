#include "net/deadline.h"

#include <utility>

#include <fmt/format.h>

namespace recua::net {

DeadlineGuard::DeadlineGuard(const Env& env, Connection& connection, Duration timeout,
                             std::string waited_for)
    : timeout_(timeout), waited_for_(std::move(waited_for)) {
  timer_ = env.clock->start_timer(env.executor, env.clock->now() + timeout, [this, &connection] {
    expired_ = true;
    connection.close();
  });
}

Error DeadlineGuard::explain(Error error) const {
  if (!expired_) return error;
  return Error{ErrorCode::kTimeout,
               fmt::format("no {} within {}", waited_for_, to_string(timeout_))};
}

std::string to_string(Duration duration) {
  const auto ns = duration.count();
  if (ns % 1'000'000'000 == 0) return fmt::format("{} s", ns / 1'000'000'000);
  if (ns % 1'000'000 == 0) return fmt::format("{} ms", ns / 1'000'000);
  if (ns % 1'000 == 0) return fmt::format("{} us", ns / 1'000);
  return fmt::format("{} ns", ns);
}

}  // namespace recua::net
