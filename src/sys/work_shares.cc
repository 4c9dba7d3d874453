#include "sys/work_shares.h"

#include <algorithm>

#include "base/check.h"

namespace recua::sys {
namespace {

constexpr unsigned kPieceBits = 24;
constexpr std::uint64_t kPieceMask = (std::uint64_t{1} << kPieceBits) - 1;
constexpr std::uint64_t kJobMask = 0xffff;

// What a take leaves for the next ones.
constexpr std::size_t kTakesPerShare = 4;

}  // namespace

Partition WorkShares::take(std::size_t owner, std::size_t n, From from) {
  RECUA_DCHECK(n <= kPiecesMax);
  const std::uint64_t job = (job_ & kJobMask) << (2 * kPieceBits);
  std::atomic<std::uint64_t>& share = shares_[owner].left;
  std::uint64_t old = share.load(std::memory_order_relaxed);
  while (true) {
    const bool is_open = (old & (kJobMask << (2 * kPieceBits))) == job;
    Partition left = {0, n};
    if (is_open) left = {(old >> kPieceBits) & kPieceMask, old & kPieceMask};
    if (is_open && left.empty()) return {};
    const std::size_t n_taken =
        std::min(left.size(), std::max<std::size_t>(1, left.size() / kTakesPerShare));
    Partition taken = {left.begin, left.begin + n_taken};
    if (from == From::kBack) taken = {left.end - n_taken, left.end};
    (from == From::kFront ? left.begin : left.end) = from == From::kFront ? taken.end : taken.begin;
    const std::uint64_t now = job | std::uint64_t{left.begin} << kPieceBits | left.end;
    if (share.compare_exchange_weak(old, now, std::memory_order_relaxed)) return taken;
  }
}

}  // namespace recua::sys
