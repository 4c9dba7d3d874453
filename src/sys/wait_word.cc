#include "sys/wait_word.h"

#include <thread>

#include "sys/futex.h"
#include "sys/pause.h"

namespace recua::sys {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr auto kSpinTimeShared = std::chrono::microseconds(5);
// Between looks at the clock; 64 pauses take 1 to 3 us on the CPUs of the last ten years.
constexpr int kPausesPerLook = 64;
// Who gave way and came back later than this gave way to another program's time slice.
constexpr auto kLateAfter = std::chrono::milliseconds(1);
// Then it does not give way for so long: a slice is lost that often.
constexpr auto kSharedFor = std::chrono::milliseconds(200);

std::uint32_t* address(std::atomic<std::uint32_t>& value) {
  static_assert(sizeof(value) == sizeof(std::uint32_t) &&
                std::atomic<std::uint32_t>::is_always_lock_free);
  return reinterpret_cast<std::uint32_t*>(&value);
}

}  // namespace

void WaitWord::add_one() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  wake();
}

void WaitWord::take_one() {
  if (value_.fetch_sub(1, std::memory_order_seq_cst) == 1) wake();
}

// Either the sleeper's count is seen here, or it sees the new value before it sleeps.
void WaitWord::wake() {
  if (n_sleepers_.load(std::memory_order_seq_cst) == 0) return;
  futex_wake_all(address(value_), FutexScope::kProcess);
}

void WaitWord::wait_while(std::uint32_t old, Manners& manners) {
  Clock::time_point now = Clock::now();
  const bool is_shared = now < manners.shared_until;
  const Clock::time_point deadline = now + (is_shared ? kSpinTimeShared : kSpinTime);
  while (now < deadline) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (load() != old) return;
      pause_cpu();
    }
    if (!is_shared) std::this_thread::yield();
    const Clock::time_point before = now;
    now = Clock::now();
    if (now - before > kLateAfter) {
      manners.shared_until = now + kSharedFor;
      break;
    }
  }
  n_sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (load() == old) {
    // Not if the value has changed by now; a signal only makes us look again.
    futex_wait(address(value_), old, FutexScope::kProcess);
  }
  n_sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace recua::sys
