#include <atomic>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "net/shm/shared_memory.h"
#include "rpc/shm_control.h"
#include "rpc/shm_path.h"

namespace recua::rpc {
namespace {

class ShmReceiver : public FastReceiver {
 public:
  ShmReceiver(std::uint32_t n_slots, net::shm::SharedMemory control)
      : n_slots_(n_slots),
        control_memory_(std::move(control)),
        control_(*reinterpret_cast<ShmControl*>(control_memory_.bytes().data())),
        bell_(control_.arrival) {}

  [[nodiscard]] std::string description() const override { return "shared memory"; }

  [[nodiscard]] bool is_quiet() const override {
    return shared(control_.n_published).load(std::memory_order_relaxed) == n_seen_;
  }
  Result<bool> poll(std::uint64_t n_expected, std::vector<Arrival>& arrivals) override {
    if (closed_) return false;
    ++n_polls_;
    const std::uint64_t published = shared(control_.n_published).load(std::memory_order_acquire);
    if (published == n_seen_) return false;
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t begin, check(published, n_expected));
    for (std::uint64_t s = begin; s < published; ++s) {
      arrivals.emplace_back().sequence = s;  // In one piece; how long it is says its header.
    }
    n_completions_ += published - begin;
    n_seen_ = published;
    return true;
  }

  /// `wake` goes without saying: who sleeps has said so in the control page.
  void tell_released(std::uint64_t n_released, bool /*wake*/) override {
    if (closed_) return;
    n_released_ = n_released;
    was_told_ = true;
    shared(control_.n_released).store(n_released, std::memory_order_seq_cst);
    net::shm::ring(control_.release);
  }

  [[nodiscard]] LaneMask lanes() const override { return closed_ ? 0 : 1; }

  Result<void> fence(LaneMask lanes, std::uint64_t n_expected,
                     std::vector<Arrival>& arrivals) override {
    if ((lanes & 1U) == 0 || closed_) return ok();
    shared(control_.closed).store(1, std::memory_order_seq_cst);
    net::shm::ring(control_.release);
    const Result<bool> last = poll(n_expected, arrivals);
    closed_ = true;
    if (!last.ok()) return last.error();
    return ok();
  }

  void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready) override {
    if (closed_) return;
    ++n_sleeps_;
    const std::uint32_t seen = bell_.announce();
    if (shared(control_.n_published).load(std::memory_order_seq_cst) != n_seen_) {
      net::shm::ring(control_.arrival);
    }
    bell_.arm(executor, seen, ready);
  }

  void add_to(ChannelCounters& counters) const override {
    counters.polls += n_polls_;
    counters.completions += n_completions_;
    counters.sleeps += n_sleeps_;
  }

 private:
  /// The first of the new messages, if what the peer published can be.
  [[nodiscard]] Result<std::uint64_t> check(std::uint64_t published,
                                            std::uint64_t n_expected) const {
    const auto refuse = [&](std::string_view why, std::uint64_t limit) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("shared memory: the peer has published {} messages, {} {}",
                               published, why, limit)};
    };
    const std::uint64_t begin =
        n_seen_ != 0 ? n_seen_ : shared(control_.first).load(std::memory_order_relaxed);
    if (published <= begin) {
      return refuse(n_seen_ != 0 ? "before that" : "the first of them being", begin);
    }
    // Before the first release by this path, what is complete bounds what can have been released.
    const std::uint64_t released = was_told_ ? n_released_ : n_expected;
    if (published > released + n_slots_) {
      return refuse("may have at most", released + n_slots_);
    }
    // Nor can it be about messages that have their slots back.
    if (n_seen_ == 0 && begin + n_slots_ < n_expected) {
      return refuse("whose first must be at least", n_expected - n_slots_);
    }
    return begin;
  }

  std::uint64_t n_slots_;
  net::shm::SharedMemory control_memory_;
  ShmControl& control_;
  net::shm::Bell bell_;  // After the memory that its words lie in.

  std::uint64_t n_seen_ = 0;      // n_published as it was last.
  std::uint64_t n_released_ = 0;  // As we told it, if was_told_.
  bool was_told_ = false;
  bool closed_ = false;
  std::uint64_t n_polls_ = 0;
  std::uint64_t n_completions_ = 0;
  std::uint64_t n_sleeps_ = 0;
};

}  // namespace

Result<std::unique_ptr<FastReceiver>> make_shm_receiver(RingShape ring, int ring_fd,
                                                        ShmAddress& out) {
  auto file = net::shm::inspect_sealed(ring_fd);
  if (!file.ok()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the ring's descriptor {}: {}", ring_fd, file.error().message)};
  }
  const auto needed = checked_mul(std::uint64_t{ring.n_slots}, ring.slot_bytes);
  if (!needed || *needed == 0 || *needed > file->bytes) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} slots of {} bytes do not lie in {} bytes of shared memory",
                             ring.n_slots, ring.slot_bytes, file->bytes)};
  }
  RECUA_ASSIGN_OR_RETURN(net::shm::SharedMemory memory,
                         net::shm::SharedMemory::create(kShmControlBytes));
  auto& control = *reinterpret_cast<ShmControl*>(memory.bytes().data());
  shared(control.slot_bytes).store(ring.slot_bytes, std::memory_order_relaxed);
  shared(control.n_slots).store(ring.n_slots, std::memory_order_relaxed);
  shared(control.ring_inode).store(file->inode, std::memory_order_relaxed);
  shared(control.magic).store(kShmMagic, std::memory_order_release);
  out = {
      .pid = ::getpid(), .ring_fd = ring_fd, .ring_bytes = file->bytes, .control_fd = memory.fd()};
  return std::make_unique<ShmReceiver>(ring.n_slots, std::move(memory));
}

}  // namespace recua::rpc
