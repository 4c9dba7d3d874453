#include "net/shm/bell.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/prefer.hpp>

#include "sys/futex.h"

namespace recua::net::shm {
namespace {

using SharedWord = std::atomic_ref<std::uint32_t>;
static_assert(SharedWord::is_always_lock_free, "a lock would lie in one process only");

// The two sides are processes.
constexpr auto kScope = sys::FutexScope::kShared;

}  // namespace

bool ring(BellWords& words) {
  SharedWord sleeps(words.sleeps);
  if (sleeps.load(std::memory_order_seq_cst) == 0) return false;
  // Taking the flag away makes one system call per sleep of it, not one per message until the
  // sleeper is up again.
  if (sleeps.exchange(0, std::memory_order_seq_cst) == 0) return false;
  SharedWord(words.count).fetch_add(1, std::memory_order_seq_cst);
  sys::futex_wake_all(&words.count, kScope);
  return true;
}

/// What the loop's thread and the helper share.
struct Bell::State {
  explicit State(BellWords& shared) : words(shared) {}

  BellWords& words;
  std::mutex mutex;
  std::condition_variable changed;
  // Under the mutex:
  std::optional<asio::any_io_executor> executor;  // Set while armed; keeps its loop busy.
  ReadyCallback ready;
  std::uint32_t seen = 0;
  bool stop = false;
  bool ended = false;  // The helper touches the shared words no more.

  std::atomic<bool> alive{true};  // False once the Bell is gone; looked at by callbacks.

  /// The helper thread.
  static void run(const std::shared_ptr<State>& state);
};

void Bell::State::run(const std::shared_ptr<State>& state) {
  State& s = *state;
  std::unique_lock lock(s.mutex);
  while (true) {
    s.changed.wait(lock, [&] { return s.stop || s.executor.has_value(); });
    if (s.stop) break;
    const std::uint32_t seen = s.seen;
    lock.unlock();
    sys::futex_wait(&s.words.count, seen, kScope);
    lock.lock();
    if (s.stop) break;
    // A signal, a wake-up for nothing, or one for an earlier announce(): sleep again.
    if (SharedWord(s.words.count).load(std::memory_order_seq_cst) == s.seen) continue;
    asio::any_io_executor executor = *std::exchange(s.executor, std::nullopt);
    ReadyCallback ready = std::exchange(s.ready, {});
    lock.unlock();
    asio::post(executor, [state, call = std::move(ready)] {
      if (state->alive) call();
    });
    executor = {};
    lock.lock();
  }
  s.ended = true;
  s.changed.notify_all();
}

Bell::Bell(BellWords& words) : state_(std::make_shared<State>(words)) {}

Bell::~Bell() {
  state_->alive = false;
  if (!helper_.joinable()) return;
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  state_->executor.reset();
  state_->ready = {};
  state_->changed.notify_all();
  // The helper may be anywhere between its last look at `stop` and its sleep, and the word it
  // sleeps on is the peer's to change: so it is woken, whatever the word says, until it has left.
  while (!state_->ended) {
    sys::futex_wake_all(&state_->words.count, kScope);
    state_->changed.wait_for(lock, std::chrono::milliseconds(1));
  }
}

std::uint32_t Bell::announce() {
  const std::uint32_t seen = SharedWord(state_->words.count).load(std::memory_order_seq_cst);
  SharedWord(state_->words.sleeps).store(1, std::memory_order_seq_cst);
  return seen;
}

void Bell::arm(const asio::any_io_executor& executor, std::uint32_t seen, ReadyCallback ready) {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->executor = asio::prefer(executor, asio::execution::outstanding_work.tracked);
    state_->ready = std::move(ready);
    state_->seen = seen;
  }
  state_->changed.notify_all();
  if (!helper_.joinable()) helper_ = std::jthread([state = state_] { State::run(state); });
}

}  // namespace recua::net::shm
