#pragma once
/// A fixed team of threads that all run the same function on their share of a job.
///
/// run(fn) calls fn(thread, n_threads) once on every thread, the caller being thread 0, and returns
/// when all are done; what they wrote is visible then. The function divides the work itself, by
/// Partition or by `i % n_threads`. run_shares() lets who is done first take what others have left
/// (sys/work_shares.h): for jobs whose end everybody waits for.
///
/// Waiting threads spin for about 50 us (an operator of a small model takes less) and then sleep,
/// as sys/wait_word.h says: an idle pool uses no CPU, a machine with fewer CPUs than threads still
/// gets on, and so do we where other programs keep the CPUs busy.
///
/// Threads may be placed on CPUs (sys/placement.h). The caller is then bound by its first run(), as
/// thread 0, and stays so; threads that it starts later begin on the same CPUs.
///
/// Threads: run() and run_shares() from one thread at a time, not from inside fn. fn must not throw
/// (it would end the process). The destructor joins.

#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "sys/partition.h"
#include "sys/wait_word.h"
#include "sys/work_shares.h"

namespace recua::sys {

class ThreadPool {
 public:
  /// n_threads counts the caller: 1 starts no thread at all. cpus: per thread those that it may
  /// run on; empty, or without any for a thread: where the process may.
  explicit ThreadPool(std::size_t n_threads, std::vector<std::vector<std::uint32_t>> cpus = {});
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  [[nodiscard]] std::size_t n_threads() const { return workers_.size() + 1; }

  template <class Fn>
  void run(Fn&& fn) {
    using Plain = std::remove_reference_t<Fn>;
    if (!cpus_.empty() && bound_ != std::this_thread::get_id()) bind_caller();
    if (workers_.empty()) {
      fn(std::size_t{0}, std::size_t{1});
      return;
    }
    dispatch([](void* context, std::size_t thread,
                std::size_t n) { (*static_cast<Plain*>(context))(thread, n); },
             const_cast<void*>(static_cast<const void*>(&fn)));
  }

  /// work(owner, pieces) on the threads for all of the n_pieces(owner) pieces of each share, owner
  /// < n_threads(); the owner's thread does most of them.
  template <class Count, class Work>
  void run_shares(Count&& n_pieces, Work&& work) {
    shares_.begin();
    run([&](std::size_t thread, std::size_t n_threads) {
      if (n_threads == 1) {  // Nobody to share with.
        work(thread, Partition{0, n_pieces(thread)});
      } else {
        shares_.run(thread, n_pieces, work);
      }
    });
  }

 private:
  using Job = void (*)(void* context, std::size_t thread, std::size_t n_threads);

  void start(std::size_t thread, std::size_t n_threads);
  void stop();
  void bind_caller();
  void dispatch(Job job, void* context);

  // The job is written before generation_ is raised and read after it was seen raised.
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  std::vector<std::vector<std::uint32_t>> cpus_;  // Empty: nobody is placed.
  std::thread::id bound_ = {};                    // The caller that was bound last.
  // On lines of their own: workers spin on the first while the caller spins on the second.
  alignas(64) WaitWord generation_;
  alignas(64) WaitWord n_running_;
  alignas(64) Manners manners_;  // The caller's.
  WorkShares shares_;
  std::vector<std::jthread> workers_;
};

}  // namespace recua::sys
