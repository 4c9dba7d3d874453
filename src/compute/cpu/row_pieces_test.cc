#include "compute/cpu/row_pieces.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::compute {
namespace {

TEST(RowPieces, CoverEachRowOnceInOrderAndCutAtGranules) {
  Rng rng(1);
  for (int round = 0; round < 2000; ++round) {
    const auto granule = static_cast<std::size_t>(1 + rng.below(33));
    const RowPieces pieces = {.n_rows = static_cast<std::size_t>(rng.below(700)),
                              .granule = granule,
                              .piece_rows = granule * static_cast<std::size_t>(1 + rng.below(5)),
                              .n_threads = static_cast<std::size_t>(1 + rng.below(5))};
    std::size_t next = 0;
    for (std::size_t owner = 0; owner < pieces.n_threads; ++owner) {
      const std::size_t n = pieces.of_share(owner);
      for (std::size_t i = 0; i < n; ++i) {
        const sys::Partition rows = pieces.rows(owner, {i, i + 1});
        ASSERT_EQ(rows.begin, next);
        ASSERT_FALSE(rows.empty());
        ASSERT_LE(rows.size(), pieces.piece_rows);
        ASSERT_EQ(rows.begin % granule, 0U);
        next = rows.end;
      }
      // A product that has no more pieces in a share gets no rows.
      ASSERT_TRUE(pieces.rows(owner, {n, n + 3}).empty());
    }
    ASSERT_EQ(next, pieces.n_rows);
  }
}

}  // namespace
}  // namespace recua::compute
