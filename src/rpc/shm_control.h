#pragma once
/// The control page of a shared-memory path: only shm_*.cc and their tests include this.
///
/// Both processes have it mapped for writing, so all words are accessed through atomic_ref. What
/// one side writes often and the other reads often lies 128 bytes apart from everything else: two
/// cache lines, because processors fetch them in pairs.

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "net/shm/bell.h"

namespace recua::rpc {

struct ShmControl {
  // Written by the receiver before it tells the address, read once by the sender.
  std::uint64_t magic;
  std::uint64_t slot_bytes;
  std::uint32_t n_slots;
  std::uint32_t claimed;  // Set by the sender that has it: a second one is refused.
  std::uint64_t ring_inode;

  alignas(128) std::uint64_t n_published;    // By the sender; 0 until its first message.
  std::uint64_t first;                       // By the sender before that.
  alignas(128) std::uint64_t n_released;     // By the receiver.
  std::uint32_t closed;                      // By the receiver: it looks at n_published no more.
  alignas(128) net::shm::BellWords arrival;  // The receiver sleeps, the sender rings.
  alignas(128) net::shm::BellWords release;  // The sender sleeps, the receiver rings.
};

inline constexpr std::size_t kShmControlBytes = 4096;
inline constexpr std::uint64_t kShmMagic = 0x314d'4853'4155'4352;  // "RCUASHM1"
static_assert(sizeof(ShmControl) <= kShmControlBytes);

template <class T>
std::atomic_ref<T> shared(T& word) {
  static_assert(std::atomic_ref<T>::is_always_lock_free, "a lock would lie in one process only");
  return std::atomic_ref<T>(word);
}

}  // namespace recua::rpc
