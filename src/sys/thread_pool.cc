// A generation counter starts a job and a count of running workers ends it; both are waited on.
#include "sys/thread_pool.h"

#include <utility>

#include "base/log.h"
#include "sys/placement.h"

namespace recua::sys {
namespace {

void bind(const std::vector<std::vector<std::uint32_t>>& cpus, std::size_t thread) {
  if (thread >= cpus.size() || cpus[thread].empty()) return;
  if (!bind_this_thread(cpus[thread])) {
    log_warning("thread {} cannot be bound to the CPUs {}: it runs where the process may", thread,
                cpu_list(cpus[thread]));
  }
}

}  // namespace

ThreadPool::ThreadPool(std::size_t n_threads, std::vector<std::vector<std::uint32_t>> cpus)
    : cpus_(std::move(cpus)), shares_(n_threads) {
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
      Manners manners;
      while (true) {
        generation_.wait_while(seen, manners);
        ++seen;  // Generations advance one at a time: the caller waits for all workers in between.
        if (stop_) return;
        job_(context_, thread, n_threads);
        n_running_.take_one();
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
  generation_.add_one();
}

void ThreadPool::bind_caller() {
  bind(cpus_, 0);
  bound_ = std::this_thread::get_id();
}

void ThreadPool::dispatch(Job job, void* context) {
  job_ = job;
  context_ = context;
  n_running_.reset(static_cast<std::uint32_t>(workers_.size()));
  generation_.add_one();
  job(context, 0, n_threads());
  for (std::uint32_t left = n_running_.load(); left != 0; left = n_running_.load()) {
    n_running_.wait_while(left, manners_);
  }
}

}  // namespace recua::sys
