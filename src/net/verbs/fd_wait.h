#pragma once
/// FdWait: a callback for a descriptor that somebody else owns, once it becomes readable.
///
/// Asio is asked to wait only; it neither reads nor closes the descriptor. The executor may be
/// another one at each call, as when an object moves to another thread: the wait on the old one is
/// given up. Destroying the FdWait drops the callback uncalled; do so before the descriptor closes.
/// The loop of the last arm() outlives the FdWait, as with everything of Asio.
/// Threads: one at a time; a handler of a wait that was given up may still run in its old loop.

#include <memory>

#include "net/connection.h"

namespace recua::net::verbs {

class FdWait {
 public:
  explicit FdWait(int fd);
  ~FdWait();
  FdWait(const FdWait&) = delete;
  FdWait& operator=(const FdWait&) = delete;

  /// Calls `ready` once from the executor's loop. A newer callback replaces the older one. When the
  /// descriptor cannot be waited for, `ready` is called all the same: whoever reads then will see.
  void arm(const asio::any_io_executor& executor, ReadyCallback ready);
  /// Drops the callback uncalled. On the loop's thread: the FdWait may then end on any other.
  void give_up();

 private:
  struct Wait;

  int fd_;
  std::shared_ptr<Wait> wait_;  // Also held by the handler that Asio keeps.
};

}  // namespace recua::net::verbs
