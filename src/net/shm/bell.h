#pragma once
/// Sleeping until another process has done something in memory that both share, at no cost for the
/// other one while nobody sleeps.
///
/// One BellWords per direction lies in shared memory: `sleeps`, the sleeper's word that it wants to
/// be woken, and `count`, on which it sleeps (a futex). What the sleeper waits for is a third word
/// (messages published, say); whoever changes it is the ringer.
///
///   sleeper: seen = count; sleeps = 1; look at the third word; if unchanged, wait while count ==
///            seen
///   ringer:  change the third word; if sleeps (and it is me who sets it to 0): ++count, wake
///
/// No wake-up is lost. The store to `sleeps` and the look at the third word on one side, the change
/// of the third word and the look at `sleeps` on the other are all sequentially consistent, so they
/// lie in one total order (Dekker's argument): either the sleeper's look comes after the change and
/// sees it, or the ringer's look comes after the store and sees that. In the latter case `seen` was
/// read before `sleeps` was set, so the increment comes after it, and the kernel compares count
/// with seen again before it puts anybody to sleep. A ringer that still sees an older `sleeps` does
/// the same a little earlier: if `seen` already holds its increment, then the change that came
/// before is visible to the look. A ringer may also change the third word by a release store and
/// put a sequentially consistent fence between that and its look (rpc/shm_sender.cc): the fence
/// takes the change's place in the order.
///
/// A hostile peer may write anything into the words: the sleeper then wakes up for nothing or not
/// at all (its connection still tells it when the peer is gone), and ~Bell() still returns.
///
/// Source: Dekker's mutual exclusion; Drepper 2011, "Futexes Are Tricky".

#include <cstdint>
#include <memory>
#include <thread>

#include "net/connection.h"

namespace recua::net::shm {

/// In shared memory, zero at first. A line of its own: the ringer looks at it with each message,
/// and it changes only when somebody goes to sleep.
struct alignas(64) BellWords {
  std::uint32_t sleeps;
  std::uint32_t count;
};
static_assert(sizeof(BellWords) == 64);

/// After a sequentially consistent change of what the other side waits for, or a fence of that kind
/// behind it: wakes it if it sleeps.
/// True when it did. Any thread or process, one at a time per words.
bool ring(BellWords& words);

/// The sleeper's side, for a thread that must not block because it serves a loop: a helper thread
/// sleeps in its place. It starts with the first arm() and ends with the object.
/// Threads: the loop's thread (or before the loop runs); one Bell per words.
class Bell {
 public:
  /// words outlive the Bell, and so do the loops it is armed for.
  explicit Bell(BellWords& words);
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;
  ~Bell();  // An armed callback is dropped uncalled.

  /// Says that we are about to sleep; what it returns is for arm(). Look after it (seq_cst) whether
  /// what you wait for is there already, and if so ring() these words yourself.
  std::uint32_t announce();
  /// Calls `ready` once from the executor's loop when the bell has rung since announce(), and keeps
  /// the loop busy until then. Armed again before that, the new callback replaces the old one.
  void arm(const asio::any_io_executor& executor, std::uint32_t seen, ReadyCallback ready);

 private:
  struct State;

  std::shared_ptr<State> state_;  // Shared with callbacks that the loop has not called yet.
  std::jthread helper_;
};

}  // namespace recua::net::shm
