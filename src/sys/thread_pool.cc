// A generation counter starts a job and a count of running workers ends it; both are spun on, then
// slept on (a futex under std::atomic::wait, which costs the other side nothing while nobody
// sleeps).
#include "sys/thread_pool.h"

#include <chrono>
#include <utility>

#include "base/log.h"
#include "sys/pause.h"
#include "sys/placement.h"

namespace recua::sys {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);
// Between looks at the clock; 64 pauses take 1 to 3 us on the CPUs of the last ten years.
constexpr int kPausesPerLook = 64;

// Waits while value == old. The yield lets a thread that shares this CPU have it: without it, more
// threads than CPUs would each burn a time slice waiting for one that cannot run.
void wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause_cpu();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < deadline);
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void bind(const std::vector<std::vector<std::uint32_t>>& cpus, std::size_t thread) {
  if (thread >= cpus.size() || cpus[thread].empty()) return;
  if (!bind_this_thread(cpus[thread])) {
    log_warning("thread {} cannot be bound to the CPUs {}: it runs where the process may", thread,
                cpu_list(cpus[thread]));
  }
}

}  // namespace

ThreadPool::ThreadPool(std::size_t n_threads, std::vector<std::vector<std::uint32_t>> cpus)
    : cpus_(std::move(cpus)) {
  RECUA_CHECK(n_threads >= 1 && n_threads <= 4096);
  workers_.reserve(n_threads - 1);
  for (std::size_t thread = 1; thread < n_threads; ++thread) {
    start(thread, n_threads);
  }
}

void ThreadPool::start(std::size_t thread, std::size_t n_threads) {
  try {
    workers_.emplace_back([this, thread, n_threads] {
      bind(cpus_, thread);
      std::uint32_t seen = 0;
      while (true) {
        wait_while(generation_, seen);
        ++seen;  // Generations advance one at a time: the caller waits for all workers in between.
        if (stop_) return;
        job_(context_, thread, n_threads);
        if (n_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) n_running_.notify_one();
      }
    });
  } catch (...) {  // The system has no thread for us: those that run must not wait for ever.
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
}

void ThreadPool::bind_caller() {
  bind(cpus_, 0);
  bound_ = std::this_thread::get_id();
}

void ThreadPool::dispatch(Job job, void* context) {
  job_ = job;
  context_ = context;
  n_running_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  job(context, 0, n_threads());
  for (std::uint32_t left = n_running_.load(std::memory_order_acquire); left != 0;
       left = n_running_.load(std::memory_order_acquire)) {
    wait_while(n_running_, left);
  }
}

}  // namespace recua::sys
