#pragma once
/// The logical pages of the KV cache that no sequence holds. Last given back, first taken: such a
/// page may still be in a CPU cache. Not thread-safe.

#include <cstddef>
#include <vector>

#include "base/check.h"
#include "model/executor.h"

namespace recua::engine {

class PagePool {
 public:
  explicit PagePool(std::uint32_t n_pages) : n_pages_(n_pages) { reset(); }

  [[nodiscard]] std::size_t n_free() const { return free_.size(); }
  [[nodiscard]] std::size_t n_pages() const { return n_pages_; }

  /// Moves n free pages to the end of pages; false (and nothing changed) if there are fewer.
  bool take(std::size_t n, std::vector<model::PageId>& pages) {
    if (n > free_.size()) return false;
    for (; n > 0; --n) {
      pages.push_back(free_.back());
      free_.pop_back();
    }
    return true;
  }

  /// Takes the pages back and empties the list.
  void give_back(std::vector<model::PageId>& pages) {
    free_.insert(free_.end(), pages.rbegin(), pages.rend());
    RECUA_CHECK(free_.size() <= n_pages_);
    pages.clear();
  }

  /// All pages are free.
  void reset() {
    free_.resize(n_pages_);
    for (std::uint32_t i = 0; i < n_pages_; ++i) free_[i] = n_pages_ - 1 - i;
  }

 private:
  std::uint32_t n_pages_;
  std::vector<model::PageId> free_;
};

}  // namespace recua::engine
