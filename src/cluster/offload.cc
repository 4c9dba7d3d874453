#include "cluster/offload.h"

#include <exception>
#include <sched.h>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include "net/event.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

class ThreadLoop final : public StageLoop {
 public:
  explicit ThreadLoop(std::shared_ptr<std::atomic<std::size_t>> n_alive)
      : n_alive_(std::move(n_alive)),
        guard_(asio::make_work_guard(loop_)),
        thread_([this] { loop_.run(); }) {
    ++*n_alive_;
  }
  ~ThreadLoop() override {
    guard_.reset();
    loop_.stop();
    thread_.join();
    --*n_alive_;
  }
  asio::any_io_executor executor() override { return loop_.get_executor(); }
  std::function<bool()> run_one() override {
    return [this] { return loop_.run_one() > 0; };
  }
  std::unique_ptr<collective::Waiter> new_waiter() override {
    return std::make_unique<collective::LoopWaiter>(loop_);
  }

 private:
  std::shared_ptr<std::atomic<std::size_t>> n_alive_;
  // Without a hint that there is one thread: with it, what a handler posts would wait for that
  // handler to end, which may itself sleep in run_one() until then.
  asio::io_context loop_;
  asio::executor_work_guard<asio::io_context::executor_type> guard_;
  std::thread thread_;
};

/// On which CPUs this thread may run, as before. A device's team binds whoever runs it, and the
/// threads that run work serve others next.
class KeepsAffinity {
 public:
  KeepsAffinity() : known_(::sched_getaffinity(0, sizeof(before_), &before_) == 0) {}
  ~KeepsAffinity() {
    if (known_) ::sched_setaffinity(0, sizeof(before_), &before_);
  }
  KeepsAffinity(const KeepsAffinity&) = delete;
  KeepsAffinity& operator=(const KeepsAffinity&) = delete;

 private:
  cpu_set_t before_{};
  bool known_;
};

class SharedLoop final : public StageLoop {
 public:
  explicit SharedLoop(asio::any_io_executor executor) : executor_(std::move(executor)) {}
  asio::any_io_executor executor() override { return executor_; }

 private:
  asio::any_io_executor executor_;
};

}  // namespace

asio::awaitable<void> ThreadOffload::run(std::function<void()> work) {
  const asio::any_io_executor home = co_await asio::this_coro::executor;
  struct Done {
    explicit Done(const asio::any_io_executor& executor) : event(executor) {}
    net::Event event;
    bool done = false;
    std::exception_ptr thrown;
  };
  // Shared: the work may outlive a caller that was cancelled.
  const auto state = std::make_shared<Done>(home);
  asio::post(pool_, [work = std::move(work), state, home] {
    const KeepsAffinity keeps;
    try {
      work();
    } catch (...) {
      state->thrown = std::current_exception();
    }
    asio::post(home, [state] {
      state->done = true;
      state->event.notify_all();
    });
  });
  while (!state->done) co_await state->event.wait();
  if (state->thrown) std::rethrow_exception(state->thrown);
}

std::unique_ptr<StageLoop> ThreadOffload::new_stage_loop() {
  return std::make_unique<ThreadLoop>(n_stage_loops_);
}

std::unique_ptr<StageLoop> InlineOffload::new_stage_loop() {
  return std::make_unique<SharedLoop>(executor_);
}

}  // namespace recua::cluster
