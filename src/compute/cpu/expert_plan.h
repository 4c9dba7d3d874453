#pragma once
/// Who computes what of a feed-forward of experts: pairs of token and expert sorted by expert, so
/// that a matrix meets all its tokens at once, and the experts' rows divided over threads.
///
/// Pure and deterministic: the same ids and number of threads give the same plan. Keeps its memory
/// from step to step. Threads: one makes the plan, then any read it.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sys/thread_pool.h"

namespace recua::compute {

class ExpertPlan {
 public:
  /// What an expert with n pairs costs, in tokens that are multiplied with weights at hand: to read
  /// the weights from memory takes as long as three. (Q4_K with two threads, Zen 4: 68 us for one
  /// token, 102 for four, 1112 for 64 with an expert of 2.7 MB.)
  [[nodiscard]] static constexpr std::size_t row_cost(std::size_t n) { return n + 3; }
  /// ids[p]: the expert of pair p, below n_experts. A counting sort, so stable.
  void sort(std::span<const std::int32_t> ids, std::size_t n_experts);

  /// The experts that any pair uses, ascending.
  [[nodiscard]] std::span<const std::uint32_t> used() const { return used_; }
  [[nodiscard]] std::size_t n_pairs() const { return pairs_.size(); }
  /// Of all pairs.
  [[nodiscard]] std::size_t cost() const { return cost_before_.back(); }
  /// The places of an expert's pairs: they are neighbours.
  [[nodiscard]] sys::Partition places(std::size_t expert) const {
    return {begin_[expert], begin_[expert + 1]};
  }
  [[nodiscard]] std::size_t pair(std::size_t place) const { return pairs_[place]; }

  /// Gives whole experts to threads. Returns how much more than an even share the busiest one has,
  /// in the units of cost(): 0 is perfect.
  double divide_whole(std::size_t n_threads);
  /// After divide_whole().
  [[nodiscard]] std::size_t thread_of(std::size_t expert) const { return thread_[expert]; }

  /// Cuts the used experts' rows, n_rows of each, into n_threads runs of equal cost, at multiples
  /// of granule; thread's part of an expert's (it may be empty).
  [[nodiscard]] sys::Partition rows_of(std::size_t used_index, std::size_t n_rows,
                                       std::size_t granule, std::size_t thread,
                                       std::size_t n_threads) const;

 private:
  [[nodiscard]] std::size_t cost_of(std::size_t expert) const {
    return row_cost(places(expert).size());
  }

  std::vector<std::uint32_t> used_;
  std::vector<std::uint32_t> by_cost_;
  std::vector<std::size_t> begin_;  // Per expert; one more at the end.
  std::vector<std::size_t> next_;
  std::vector<std::size_t> pairs_;        // By place.
  std::vector<std::size_t> cost_before_;  // Per used expert: of a row of all before it; one more.
  std::vector<std::size_t> thread_;       // Per expert.
  std::vector<std::size_t> load_;         // Per thread.
};

}  // namespace recua::compute
