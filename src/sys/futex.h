#pragma once
/// The two futex calls that waiting on a word takes. Threads: any.

#include <cstdint>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace recua::sys {

/// Who waits on a word: threads of this process, or of all that map its memory.
enum class FutexScope { kProcess, kShared };

/// Sleeps if the word still is `seen`; comes back for no reason too.
inline void futex_wait(std::uint32_t* word, std::uint32_t seen, FutexScope scope) {
  const int operation = scope == FutexScope::kShared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE;
  (void)::syscall(SYS_futex, word, operation, seen, nullptr, nullptr, 0);
}

inline void futex_wake_all(std::uint32_t* word, FutexScope scope) {
  const int operation = scope == FutexScope::kShared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE;
  (void)::syscall(SYS_futex, word, operation, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace recua::sys
