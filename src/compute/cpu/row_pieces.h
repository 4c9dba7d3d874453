#pragma once
/// How threads divide the rows of a product: an even share for each, cut into pieces
/// (sys/work_shares.h). Shares and pieces begin at multiples of the granule.

#include <algorithm>
#include <cstddef>

#include "sys/partition.h"

namespace recua::compute {

struct RowPieces {
  std::size_t n_rows = 0;
  std::size_t granule = 1;
  std::size_t piece_rows = 1;  // A multiple of the granule; the last of a share may have fewer.
  std::size_t n_threads = 1;

  [[nodiscard]] std::size_t of_share(std::size_t owner) const {
    return (share(owner).size() + piece_rows - 1) / piece_rows;
  }
  /// Their rows; pieces beyond those of the share have none.
  [[nodiscard]] sys::Partition rows(std::size_t owner, sys::Partition pieces) const {
    const sys::Partition all = share(owner);
    return {std::min(all.end, all.begin + pieces.begin * piece_rows),
            std::min(all.end, all.begin + pieces.end * piece_rows)};
  }

 private:
  [[nodiscard]] sys::Partition share(std::size_t owner) const {
    return sys::partition(n_rows, owner, n_threads, granule);
  }
};

}  // namespace recua::compute
