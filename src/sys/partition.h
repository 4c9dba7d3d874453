#pragma once
/// How items are divided among threads.

#include <cstddef>

namespace recua::sys {

/// The items [begin, end).
struct Partition {
  std::size_t begin = 0;
  std::size_t end = 0;

  [[nodiscard]] std::size_t size() const { return end - begin; }
  [[nodiscard]] bool empty() const { return begin == end; }
};

/// Thread `thread`'s contiguous share of n_items, cut at multiples of granularity (>= 1) only.
/// Shares differ by at most one granule; together they cover every item once.
constexpr Partition partition(std::size_t n_items, std::size_t thread, std::size_t n_threads,
                              std::size_t granularity = 1) {
  const std::size_t granules = n_items / granularity + (n_items % granularity != 0 ? 1 : 0);
  const std::size_t share = granules / n_threads;
  const std::size_t longer = granules % n_threads;  // So many threads take one more.
  const std::size_t first = thread * share + (thread < longer ? thread : longer);
  const std::size_t last = first + share + (thread < longer ? 1 : 0);
  const std::size_t begin = first * granularity;
  const std::size_t end = last * granularity;
  return {begin < n_items ? begin : n_items, end < n_items ? end : n_items};
}

}  // namespace recua::sys
