#pragma once
/// WaitSet: what a data path sleeps on when it needs no loop: descriptors that become readable.
///
/// A wait that goes through an event loop (callbacks, their queue, timers) runs some thousand
/// instructions spread over a hundred pages, all of them cold after a change of process; this one
/// is a system call. Nothing else of the thread's loop gets its turn meanwhile, so waits are short:
/// who is not woken within kDirectWait sleeps in the loop after all. Waits share one timer that
/// runs on from one to the next: to program it each time would cost more than the wait.
/// Threads: one at a time, a set and its handles together.

#include <chrono>
#include <memory>

#include "net/clock.h"

namespace recua::net {

/// The longest that a thread waits outside of its loop.
inline constexpr Duration kDirectWait = std::chrono::milliseconds(10);

class WaitSet {
 public:
  WaitSet();
  ~WaitSet();
  WaitSet(const WaitSet&) = delete;
  WaitSet& operator=(const WaitSet&) = delete;

  /// Sleeps until a handle's descriptor is readable, for kDirectWait or up to twice as long when
  /// the time of an earlier wait still ran. False: nothing was.
  bool wait();
  /// The same without sleeping.
  bool look();

 private:
  friend class WaitHandle;
  struct Epoll;
  bool start_timer();
  bool take_events(int timeout_ms);

  std::shared_ptr<Epoll> epoll_;  // Shared with handles, which may outlive the set.
  bool timer_runs_ = false;
};

/// Lives beside a descriptor, and ends before that is closed.
class WaitHandle {
 public:
  /// fd < 0: one that never joins.
  explicit WaitHandle(int fd);
  ~WaitHandle();
  WaitHandle(const WaitHandle&) = delete;
  WaitHandle& operator=(const WaitHandle&) = delete;

  /// Makes the descriptor one of the set's, instead of another set's, if it is not yet. False: it
  /// cannot be waited for in this way.
  bool join(const WaitSet& set);
  /// Makes it no set's until the next join(): what becomes readable and is not read ends every
  /// wait.
  void leave();
  /// Whether a wait has found it readable; takes that note away.
  bool take();

 private:
  friend class WaitSet;

  int fd_;
  bool noted_ = false;
  std::shared_ptr<WaitSet::Epoll> epoll_;
};

}  // namespace recua::net
