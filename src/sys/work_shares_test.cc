#include "sys/work_shares.h"

#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "sys/thread_pool.h"

namespace recua::sys {
namespace {

/// How often each piece was worked on, per share.
using Counts = std::vector<std::vector<std::atomic<int>>>;

Counts counts_of(const std::vector<std::size_t>& sizes) {
  Counts counts;
  for (const std::size_t n : sizes) counts.emplace_back(n);
  return counts;
}

void expect_each(const Counts& counts, int n) {
  for (std::size_t share = 0; share < counts.size(); ++share) {
    for (std::size_t i = 0; i < counts[share].size(); ++i) {
      ASSERT_EQ(counts[share][i].load(), n) << "piece " << i << " of share " << share;
    }
  }
}

TEST(WorkShares, EveryPieceOnceHoweverUnevenTheShares) {
  const std::vector<std::vector<std::size_t>> cases = {
      {1}, {7, 7}, {0, 100}, {100, 0}, {3, 0, 1000}, {1, 2, 3, 4}, {0, 0, 0}};
  for (const std::vector<std::size_t>& sizes : cases) {
    ThreadPool pool(sizes.size());
    Counts counts = counts_of(sizes);
    for (int job = 1; job <= 300; ++job) {
      pool.run_shares([&](std::size_t owner) { return sizes[owner]; },
                      [&](std::size_t owner, Partition pieces) {
                        for (std::size_t i = pieces.begin; i < pieces.end; ++i) {
                          counts[owner][i].fetch_add(1, std::memory_order_relaxed);
                        }
                      });
      expect_each(counts, job);
    }
  }
}

/// What one thread of a team takes when nobody else is there, in order.
struct Taken {
  std::vector<std::size_t> owners, pieces;
};
Taken take_alone(WorkShares& shares, std::size_t thread, std::size_t n_pieces) {
  Taken taken;
  shares.run(
      thread, [&](std::size_t) { return n_pieces; },
      [&](std::size_t owner, Partition pieces) {
        for (std::size_t i = pieces.begin; i < pieces.end; ++i) {
          taken.owners.push_back(owner);
          taken.pieces.push_back(i);
        }
      });
  return taken;
}

TEST(WorkShares, AThreadTakesItsOwnFromTheFrontAndOthersFromTheBack) {
  constexpr std::size_t kPieces = 3;  // Few, so that each is a take of its own.
  WorkShares shares(3);
  shares.begin();
  const Taken taken = take_alone(shares, 1, kPieces);
  EXPECT_EQ(taken.owners, (std::vector<std::size_t>{1, 1, 1, 2, 2, 2, 0, 0, 0}));
  EXPECT_EQ(taken.pieces, (std::vector<std::size_t>{0, 1, 2, 2, 1, 0, 2, 1, 0}));
  // The others find nothing left.
  EXPECT_TRUE(take_alone(shares, 0, kPieces).pieces.empty());
  EXPECT_TRUE(take_alone(shares, 2, kPieces).pieces.empty());
}

TEST(WorkShares, OfManyThreadsOnlyTheNextOnesAreNeighbours) {
  WorkShares shares(12);
  shares.begin();
  const std::vector<std::size_t> want = {5, 6, 7, 8, 9, 10, 11, 0, 1};
  EXPECT_EQ(take_alone(shares, 5, 1).owners, want);
  EXPECT_EQ(take_alone(shares, 3, 1).owners, (std::vector<std::size_t>{3, 4}));
  EXPECT_EQ(take_alone(shares, 2, 1).owners, (std::vector<std::size_t>{2}));
}

// A share remembers 16 bits of the number of a job.
TEST(WorkShares, SharesAreWholeAgainAfterVeryManyJobs) {
  constexpr std::size_t kSameBits = std::size_t{1} << 16U;
  WorkShares shares(2);
  for (std::size_t job = 1; job <= 2 * kSameBits + 1; ++job) {
    // Nothing to do for the first thread in all jobs in between.
    const std::size_t n = job % kSameBits == 1 ? 3 : 0;
    std::size_t taken = 0;
    shares.begin();
    // In those its owner alone opens its share: the other one would do so, too.
    for (std::size_t thread = 0; thread < (n == 0 ? 1U : 2U); ++thread) {
      shares.run(
          thread, [&](std::size_t owner) { return owner == 0 ? n : 1; },
          [&](std::size_t, Partition pieces) { taken += pieces.size(); });
    }
    ASSERT_EQ(taken, n + 1) << "job " << job;
  }
}

TEST(WorkShares, ASlowThreadIsHelped) {
  constexpr std::size_t kPieces = 64;
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<std::size_t> n_first = 0;  // Pieces of the slow one's first take.
  std::atomic<std::size_t> n_helped = 0;
  pool.run_shares([](std::size_t) { return kPieces; },
                  [&](std::size_t owner, Partition pieces) {
                    if (std::this_thread::get_id() != caller) {
                      // It gets no further than that.
                      EXPECT_EQ(owner, 1U);
                      n_first = pieces.size();
                      while (n_helped != kPieces - n_first) std::this_thread::yield();
                    } else if (owner == 0) {
                      while (n_first == 0) std::this_thread::yield();
                    } else {
                      n_helped += pieces.size();
                    }
                  });
  EXPECT_EQ(n_first, kPieces / 4);
  EXPECT_EQ(n_helped, kPieces - n_first);
}

}  // namespace
}  // namespace recua::sys
