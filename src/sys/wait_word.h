#pragma once
/// WaitWord: a number that threads of one process wait on for a short time: they spin for about
/// 50 us and then sleep (a futex). Changing it costs no system call while nobody sleeps.
///
/// A thread that spins gives way now and then (sched_yield): with more threads than CPUs, those
/// that it waits for must get on. But where other programs want the CPU, too, it would come back a
/// time slice of some milliseconds later, long after what it waits for. Whoever notices that
/// (Manners) spins for 5 us only and then sleeps for the next while: one who was asleep gets the
/// CPU soon after it is woken.
///
/// Threads: any. Manners belong to one thread at a time.

#include <atomic>
#include <chrono>
#include <cstdint>

namespace recua::sys {

/// What a waiting thread remembers of its CPU.
struct Manners {
  std::chrono::steady_clock::time_point shared_until = {};
};

class WaitWord {
 public:
  [[nodiscard]] std::uint32_t load() const { return value_.load(std::memory_order_acquire); }
  /// Wakes nobody: before anybody waits.
  void reset(std::uint32_t value) { value_.store(value, std::memory_order_relaxed); }
  /// Adds one and wakes all. What this thread wrote before is visible to who sees the change.
  void add_one();
  /// Takes one away, and wakes all when none is left.
  void take_one();
  /// Returns once the value is no longer `old`.
  void wait_while(std::uint32_t old, Manners& manners);

 private:
  void wake();

  std::atomic<std::uint32_t> value_{0};
  std::atomic<std::uint32_t> n_sleepers_{0};
};

}  // namespace recua::sys
