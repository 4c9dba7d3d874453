#pragma once
/// What the objects of a FakeFabric share. Internal to fake_*.cc; every function that takes a
/// FabricState expects its mutex to be held.
///
/// A queue pair is known by its number, as on a wire: whoever sends looks the other end up for each
/// message, and finds that it is gone, unreachable or in error as a card would.

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <boost/asio/post.hpp>

#include "base/check.h"
#include "net/verbs/fake_fabric.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

/// First in, first out, with room for a fixed number: nothing is allocated while messages flow.
template <class T>
class FakeRing {
 public:
  explicit FakeRing(std::size_t capacity) : items_(capacity) {}

  [[nodiscard]] std::size_t size() const { return n_; }
  [[nodiscard]] bool empty() const { return n_ == 0; }
  [[nodiscard]] bool full() const { return n_ == items_.size(); }
  [[nodiscard]] T& at(std::size_t i) { return items_[wrapped(first_ + i)]; }
  void push(T item) {
    RECUA_CHECK(!full());
    items_[wrapped(first_ + n_)] = std::move(item);
    ++n_;
  }
  T pop() {
    RECUA_CHECK(!empty());
    T item = std::move(items_[first_]);
    first_ = wrapped(first_ + 1);
    --n_;
    return item;
  }

 private:
  [[nodiscard]] std::size_t wrapped(std::size_t i) const {
    return i < items_.size() ? i : i - items_.size();
  }

  std::vector<T> items_;
  std::size_t first_ = 0;
  std::size_t n_ = 0;
};

/// A callback that is owed one call. Dropped uncalled with whoever owns it.
class FakeWakeup {
 public:
  void arm(const asio::any_io_executor& executor, ReadyCallback ready) {
    executor_ = executor;
    ready_ = std::move(ready);
  }
  void give_up() { ready_ = {}; }
  void fire() {
    if (!ready_) return;
    asio::post(executor_, [alive = std::weak_ptr<int>(alive_), ready = std::exchange(ready_, {})] {
      if (!alive.expired()) ready();
    });
  }

 private:
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
  asio::any_io_executor executor_;
  ReadyCallback ready_;
};

struct FakeDeviceState;

/// An opened device: whom asynchronous events go to.
struct FakeContextState {
  FakeDeviceState* device = nullptr;
  std::deque<DeviceEvent> events;
  FakeWakeup wakeup;
};

struct FakeDeviceState {
  std::string host;
  DeviceInfo info;  // As it is now; one port.
  FakeLimits limits;
  bool silent = false;
  bool removed = false;
  bool busy = false;
  std::uint64_t locked_bytes = 0;
  std::deque<Status> send_faults;
  std::deque<Status> receive_faults;
  std::vector<FakeContextState*> contexts;

  [[nodiscard]] PortInfo& port() { return info.ports.front(); }
  [[nodiscard]] bool reachable() {
    return !removed && !silent && port().state == PortState::kActive;
  }
  [[nodiscard]] const GidEntry* find_gid(std::uint32_t index);
  [[nodiscard]] bool has_gid(const Gid& gid);
};

struct FakeRegionState {
  std::uint64_t domain = 0;
  std::span<std::byte> memory;
  Access access = Access::kLocal;
  std::uint32_t lkey = 0;
  std::uint32_t rkey = 0;  // Never the same number as lkey, so that a mix-up fails here.
};

struct FakePairState;

struct FakeQueueState {
  explicit FakeQueueState(std::size_t depth) : entries(depth) {}

  struct Entry {
    Completion completion;
    FakePairState* pair = nullptr;
    std::uint64_t slot = 0;  // The send that it frees, and all before it.
    bool is_receive = false;
  };
  FakeRing<Entry> entries;
  bool overrun = false;
  FakeWakeup wakeup;
};

/// A request that a queue pair still has to carry out.
struct FakeFlight {
  FakePairState* pair = nullptr;
  SendRequest request;  // Its segments are these:
  std::vector<Segment> segments;
  std::vector<std::byte> inline_bytes;  // What they point to if the data is inline.
  std::uint64_t slot = 0;
};

struct FakePairState {
  explicit FakePairState(const QueuePairOptions& wished)
      : options(wished), receives(wished.receive_depth) {}

  enum class Phase : std::uint8_t { kInit, kReady, kError };

  FakeContextState* context = nullptr;
  std::uint64_t domain = 0;
  FakeQueueState* queue = nullptr;
  QueuePairOptions options;
  std::uint32_t number = 0;
  Phase phase = Phase::kInit;
  ConnectParameters parameters;
  std::uint64_t sends_posted = 0;
  std::uint64_t sends_freed = 0;
  std::uint64_t receives_busy = 0;  // Posted, and their completions not polled yet.
  FakeRing<ReceiveRequest> receives;

  [[nodiscard]] FakeDeviceState& device() const { return *context->device; }
};

struct FabricState {
  mutable std::mutex mutex;
  std::vector<std::unique_ptr<FakeDeviceState>> devices;  // In the order of add_device().
  std::unordered_map<std::uint32_t, FakePairState*> pairs;
  std::unordered_map<std::uint32_t, FakeRegionState*> by_lkey;
  std::unordered_map<std::uint32_t, FakeRegionState*> by_rkey;
  std::deque<FakeFlight> flights;  // Held back, oldest first.
  bool hold = false;
  bool hold_ends = false;
  std::condition_variable ends;  // hold_ends has changed.
  std::uint32_t n_numbers = 0;   // Queue pair numbers and keys given out.
  std::uint64_t n_domains = 0;
  FakeCounts counts;

  FakeDeviceState& device(const std::string& name);
};

// fake_delivery.cc: what cards do with each other.

/// Carries a request out, or fails it, with all that follows for both ends.
void fake_execute(FabricState& fabric, FakePairState& pair, const SendRequest& request,
                  std::uint64_t slot);
/// To the error state: flushes what is held back and posted.
void fake_enter_error(FabricState& fabric, FakePairState& pair);
/// A completion of a send that did not succeed.
void fake_complete_send(FakePairState& pair, const SendRequest& request, std::uint64_t slot,
                        Status status);
void fake_flush_receives(FakePairState& pair);
/// Executes at most n of the requests that are held back, all if n < 0; how many it were.
std::size_t fake_release(FabricState& fabric, int n);
void fake_raise(FakeContextState& context, DeviceEvent event);

// fake_objects.cc
std::unique_ptr<Device> fake_open(std::shared_ptr<FabricState> fabric, FakeDeviceState& device);

}  // namespace recua::net::verbs
