#include "sys/work_shares.h"

#include <algorithm>

namespace recua::sys {
namespace {

constexpr unsigned kPieceBits = 24;
constexpr std::uint64_t kPieceMask = (std::uint64_t{1} << kPieceBits) - 1;
constexpr std::uint64_t kJobMask = std::uint64_t{0xffff} << (2 * kPieceBits);

// What a take leaves for the next ones.
constexpr std::size_t kTakesPerShare = 4;

std::uint64_t stamp(std::uint64_t job) { return (job << (2 * kPieceBits)) & kJobMask; }

Partition left_in(std::uint64_t share) {
  return {(share >> kPieceBits) & kPieceMask, share & kPieceMask};
}

}  // namespace

bool WorkShares::is_used_up(std::size_t owner) const {
  const std::uint64_t share = shares_[owner].left.load(std::memory_order_relaxed);
  return (share & kJobMask) == stamp(job_) && left_in(share).empty();
}

Partition WorkShares::take(std::size_t owner, std::size_t n, From from) {
  std::atomic<std::uint64_t>& share = shares_[owner].left;
  std::uint64_t old = share.load(std::memory_order_relaxed);
  while (true) {
    const bool is_open = (old & kJobMask) == stamp(job_);
    Partition left = is_open ? left_in(old) : Partition{0, n};
    if (is_open && left.empty()) return {};
    const std::size_t n_taken =
        std::min(left.size(), std::max<std::size_t>(1, left.size() / kTakesPerShare));
    Partition taken = left;
    if (from == From::kFront) {
      taken.end = left.begin = left.begin + n_taken;
    } else {
      taken.begin = left.end = left.end - n_taken;
    }
    const std::uint64_t now = stamp(job_) | std::uint64_t{left.begin} << kPieceBits | left.end;
    if (share.compare_exchange_weak(old, now, std::memory_order_relaxed)) return taken;
  }
}

}  // namespace recua::sys
