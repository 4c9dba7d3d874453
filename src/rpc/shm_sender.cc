#include <atomic>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "net/shm/shared_memory.h"
#include "rpc/ring_index.h"
#include "rpc/shm_control.h"
#include "rpc/shm_path.h"

namespace recua::rpc {
namespace {

class ShmSender : public FastSender {
 public:
  ShmSender(RingShape ring, net::shm::SharedMemory memory, net::shm::SharedMemory control)
      : ring_(ring),
        index_(ring.n_slots),
        memory_(std::move(memory)),
        control_memory_(std::move(control)),
        control_(*reinterpret_cast<ShmControl*>(control_memory_.bytes().data())),
        bell_(control_.release) {}

  [[nodiscard]] std::string description() const override { return "shared memory"; }

  Result<bool> post(const SlotWrite& message) override {
    if (closed_ || dropped_) return false;
    RECUA_CHECK(message.bytes() <= ring_.slot_bytes);
    RECUA_CHECK(n_published_ == 0 || message.sequence == n_published_);
    std::byte* to = memory_.bytes().data() +
                    index_(message.sequence) * static_cast<std::size_t>(ring_.slot_bytes);
    const auto put = [&to](std::span<const std::byte> part) {
      std::memcpy(to, part.data(), part.size());
      to += part.size();
    };
    put(message.head);
    if (!message.rows.empty()) put(message.rows);
    if (!message.descriptor.empty()) put(message.descriptor);
    if (n_published_ == 0) {
      shared(control_.first).store(message.sequence, std::memory_order_relaxed);
    }
    n_published_ = message.sequence + 1;
    ++n_posts_;
    shared(control_.n_published).store(n_published_, std::memory_order_release);
    // To look whether the receiver sleeps, all these bytes must first have left this processor:
    // meanwhile it could look for an answer (8 KiB one way: 0.85 of the time).
    owes_ring_ = true;
    if (!message.wakes_later) wake();
    return true;
  }

  bool poll() override {
    ++n_polls_;
    if (closed_ || dropped_) return false;
    wake();
    const std::uint64_t told = shared(control_.n_released).load(std::memory_order_acquire);
    bool moved = false;
    if (told != told_) {
      told_ = told;
      n_released_ = told;
      ++n_completions_;
      moved = true;
    }
    if (shared(control_.closed).load(std::memory_order_acquire) != 0) closed_ = moved = true;
    return moved;
  }

  [[nodiscard]] bool flushed() const override { return !owes_ring_; }
  void wake() override {
    if (!std::exchange(owes_ring_, false)) return;
    std::atomic_thread_fence(std::memory_order_seq_cst);  // net/shm/bell.h says why.
    net::shm::ring(control_.arrival);
  }
  [[nodiscard]] bool is_complete(std::uint64_t sequence) const override {
    return sequence < n_published_;
  }
  [[nodiscard]] bool completes_at_once() const override { return true; }
  [[nodiscard]] std::uint64_t n_released() const override { return n_released_; }

  [[nodiscard]] LaneMask failed_lanes() const override { return closed_ && !dropped_ ? 1 : 0; }
  [[nodiscard]] LaneMask lanes() const override { return dropped_ ? 0 : 1; }
  [[nodiscard]] std::string failure() const override {
    return closed_ ? "the receiver has closed the shared memory" : "";
  }
  void drop_lanes(LaneMask lanes) override {
    if ((lanes & 1U) != 0) dropped_ = true;
    owes_ring_ = false;
  }

  void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready,
           bool for_progress) override {
    if (dropped_ || !for_progress) return;  // The connection tells of a peer that is gone.
    ++n_sleeps_;
    const std::uint32_t seen = bell_.announce();
    if (shared(control_.n_released).load(std::memory_order_seq_cst) != told_ ||
        (!closed_ && shared(control_.closed).load(std::memory_order_seq_cst) != 0)) {
      net::shm::ring(control_.release);
    }
    bell_.arm(executor, seen, ready);
  }

  void add_to(ChannelCounters& counters) const override {
    counters.posts += n_posts_;
    counters.requests += n_posts_;
    counters.polls += n_polls_;
    counters.completions += n_completions_;
    counters.sleeps += n_sleeps_;
  }

 private:
  RingShape ring_;
  RingIndex index_;
  net::shm::SharedMemory memory_;
  net::shm::SharedMemory control_memory_;
  ShmControl& control_;
  net::shm::Bell bell_;  // After the memory that its words lie in.

  std::uint64_t n_published_ = 0;  // 0: nothing was posted yet.
  std::uint64_t told_ = 0;         // The shared n_released as poll() saw it last.
  std::uint64_t n_released_ = 0;   // That, if it is sane.
  bool owes_ring_ = false;         // Published, but whether the receiver sleeps is not known.
  bool closed_ = false;
  bool dropped_ = false;
  std::uint64_t n_posts_ = 0;
  std::uint64_t n_polls_ = 0;
  std::uint64_t n_completions_ = 0;
  std::uint64_t n_sleeps_ = 0;
};

/// The page is the peer's: only what agrees with what we know is used.
Result<void> check_control(RingShape ring, const net::shm::SharedMemory& memory,
                           ShmControl& control) {
  const std::uint64_t magic = shared(control.magic).load(std::memory_order_acquire);
  if (magic != kShmMagic) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("the control page of shared memory begins with {:#x}, not {:#x}",
                             magic, kShmMagic)};
  }
  const RingShape told{.n_slots = shared(control.n_slots).load(std::memory_order_relaxed),
                       .slot_bytes = shared(control.slot_bytes).load(std::memory_order_relaxed)};
  if (told.n_slots != ring.n_slots || told.slot_bytes != ring.slot_bytes) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("the control page of shared memory is for {} slots of {} bytes, the "
                             "channel has {} of {}",
                             told.n_slots, told.slot_bytes, ring.n_slots, ring.slot_bytes)};
  }
  // Otherwise a wrong number would have us write into the ring of another channel.
  if (shared(control.ring_inode).load(std::memory_order_relaxed) != memory.inode()) {
    return Error{ErrorCode::kProtocol, "the control page of shared memory is for another ring"};
  }
  if (shared(control.claimed).exchange(1, std::memory_order_acq_rel) != 0) {
    return Error{ErrorCode::kProtocol, "the control page of shared memory has a sender already"};
  }
  return ok();
}

}  // namespace

Result<std::unique_ptr<FastSender>> make_shm_sender(RingShape ring, const ShmAddress& address) {
  const auto needed = checked_mul(std::uint64_t{ring.n_slots}, ring.slot_bytes);
  if (!needed || *needed == 0 || *needed > address.ring_bytes) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} slots of {} bytes do not lie in {} bytes of shared memory",
                             ring.n_slots, ring.slot_bytes, address.ring_bytes)};
  }
  RECUA_ASSIGN_OR_RETURN(
      net::shm::SharedMemory memory,
      net::shm::SharedMemory::open(address.pid, address.ring_fd, address.ring_bytes));
  RECUA_ASSIGN_OR_RETURN(
      net::shm::SharedMemory control,
      net::shm::SharedMemory::open(address.pid, address.control_fd, kShmControlBytes));
  RECUA_RETURN_IF_ERROR(
      check_control(ring, memory, *reinterpret_cast<ShmControl*>(control.bytes().data())));
  return std::make_unique<ShmSender>(ring, std::move(memory), std::move(control));
}

}  // namespace recua::rpc
