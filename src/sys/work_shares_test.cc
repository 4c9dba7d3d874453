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

void expect_each(const Counts& counts, int n, const char* what) {
  for (std::size_t share = 0; share < counts.size(); ++share) {
    for (std::size_t i = 0; i < counts[share].size(); ++i) {
      ASSERT_EQ(counts[share][i].load(), n) << what << ": piece " << i << " of share " << share;
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
      expect_each(counts, job, "a job");
    }
  }
}

TEST(WorkShares, OneThreadAloneTakesItsOwnInOrderAndThenItsNeighbours) {
  constexpr std::size_t kPieces = 21;
  WorkShares shares(3);
  shares.begin();
  std::vector<std::size_t> own;
  std::vector<std::size_t> others;
  shares.run(
      1, [](std::size_t) { return kPieces; },
      [&](std::size_t owner, Partition pieces) {
        for (std::size_t i = pieces.begin; i < pieces.end; ++i) {
          (owner == 1 ? own : others).push_back(owner * 100 + i);
        }
        if (owner != 1) {
          EXPECT_EQ(own.size(), kPieces) << "its own first";
        }
      });
  std::vector<std::size_t> want;
  for (std::size_t i = 0; i < kPieces; ++i) want.push_back(100 + i);
  EXPECT_EQ(own, want);
  EXPECT_EQ(others.size(), 2 * kPieces);
  // The others find nothing left.
  for (const std::size_t thread : {std::size_t{0}, std::size_t{2}}) {
    shares.run(
        thread, [](std::size_t) { return kPieces; },
        [&](std::size_t, Partition) { ADD_FAILURE() << "taken twice"; });
  }
}

// The number of a job has 16 bits in a share.
TEST(WorkShares, SharesAreWholeAgainAfterVeryManyJobs) {
  WorkShares shares(2);
  for (std::size_t job = 0; job < 140000; ++job) {
    // Now and then a job in which somebody has nothing to do.
    const std::size_t n = job % 7 == 0 ? 0 : 3;
    std::size_t taken = 0;
    shares.begin();
    for (const std::size_t thread : {std::size_t{0}, std::size_t{1}}) {
      shares.run(
          thread, [&](std::size_t owner) { return owner == 0 ? n : 1; },
          [&](std::size_t, Partition pieces) { taken += pieces.size(); });
    }
    ASSERT_EQ(taken, n + 1) << "job " << job;
  }
}

TEST(WorkShares, ASlowThreadIsHelped) {
  constexpr std::size_t kPieces = 64;
  constexpr std::size_t kFirstTake = kPieces / 4;
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> slow_began = false;
  std::atomic<std::size_t> n_helped = 0;
  pool.run_shares([](std::size_t) { return kPieces; },
                  [&](std::size_t owner, Partition pieces) {
                    if (std::this_thread::get_id() != caller) {
                      // The slow one gets no further than its first take.
                      EXPECT_EQ(owner, 1U);
                      EXPECT_EQ(pieces.size(), kFirstTake);
                      slow_began = true;
                      while (n_helped != kPieces - kFirstTake) std::this_thread::yield();
                    } else if (owner == 0) {
                      while (!slow_began) std::this_thread::yield();
                    } else {
                      n_helped += pieces.size();
                    }
                  });
  EXPECT_EQ(n_helped, kPieces - kFirstTake);
}

}  // namespace
}  // namespace recua::sys
