#pragma once
/// Shares of a job that are cut into pieces: a thread takes those of its own from the front, and
/// once they are gone what its neighbours have left from the back.
///
/// Threads of one job rarely get on equally fast: cores differ, others use them or the memory. With
/// fixed shares all wait for the slowest at the end of every job, hundreds of times per second.
/// Here most of a share is still its owner's, from front to back: memory that it touched first is
/// close to it, and asking for what comes next is right. (Of a thread that comes late to a job with
/// few pieces others may take all.)
///
/// Each take is a quarter of what is left of a share, at least a piece, so the last ones are small.
/// It is one compare-and-swap on a line that neighbours look at when their own share is used up.
/// Neighbours are the next threads by number, wherever their memory is.
///
/// Threads: begin() before the team starts on a job, while none of it is in run(); whoever
/// starts the team makes it visible. What pieces wrote is made visible by the team's end, not here.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "sys/partition.h"

namespace recua::sys {

class WorkShares {
 public:
  /// Of one share.
  static constexpr std::size_t kPiecesMax = (std::size_t{1} << 24U) - 1;

  explicit WorkShares(std::size_t n_threads) : shares_(n_threads) {}

  /// A new job: every share is whole again.
  void begin() { ++job_; }

  /// Calls work(owner, pieces) until nothing is left of this thread's share and of those of the
  /// next kNeighbours threads. n_pieces(owner) is the size of a share in pieces, at most
  /// kPiecesMax, the same whichever thread asks. Each thread of the team calls this once per job.
  template <class Count, class Work>
  void run(std::size_t thread, Count&& n_pieces, Work&& work) {
    take_all(thread, n_pieces(thread), From::kFront, work);
    for (std::size_t i = 1; i < shares_.size() && i <= kNeighbours; ++i) {
      const std::size_t owner = (thread + i) % shares_.size();
      if (!is_used_up(owner)) take_all(owner, n_pieces(owner), From::kBack, work);
    }
  }

 private:
  enum class From { kFront, kBack };

  /// With many threads, to look at everybody's share would take longer than what is left.
  static constexpr std::size_t kNeighbours = 8;

  /// The job (its low 16 bits), the first and the end of the pieces that are left (24 bits each).
  /// Of another job: nobody has taken anything. Its owner opens it in every job, so that a job 2^16
  /// later cannot be mistaken for this one.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> left{0};
  };

  template <class Work>
  void take_all(std::size_t owner, std::size_t n, From from, Work&& work) {
    RECUA_CHECK(n <= kPiecesMax);
    for (Partition p = take(owner, n, from); !p.empty(); p = take(owner, n, from)) work(owner, p);
  }
  [[nodiscard]] bool is_used_up(std::size_t owner) const;
  /// Some of the pieces that are left of a share of n; empty when none are.
  Partition take(std::size_t owner, std::size_t n, From from);

  std::uint64_t job_ = 0;
  std::vector<Share> shares_;
};

}  // namespace recua::sys
