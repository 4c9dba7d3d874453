#include "train/frozen.h"

#include <algorithm>

#include "base/check.h"
#include "quant/dequantize.h"

namespace recua::train {
namespace {

constexpr std::size_t kTileRows = kernels::kGemmBlockK;

const std::byte* row_of(const FrozenMatrix& w, std::size_t row) {
  return w.data + row * quant::row_bytes(w.type, w.n_in);
}

// fn(first row, rows, the rows in f32) for each tile of w.
template <class Fn>
void for_tiles(Team& team, const FrozenMatrix& w, std::span<float> scratch, Fn&& fn) {
  RECUA_CHECK(scratch.size() >= frozen_scratch_floats(w.n_in));
  for (std::size_t begin = 0; begin < w.n_out; begin += kTileRows) {
    const std::size_t n = std::min(kTileRows, w.n_out - begin);
    team.for_parts(n, [&](std::size_t first, std::size_t last) {
      for (std::size_t r = first; r < last; ++r) {
        quant::dequantize_row(w.type, row_of(w, begin + r), w.n_in, scratch.data() + r * w.n_in);
      }
    });
    fn(begin, n, scratch.data());
  }
}

}  // namespace

std::size_t frozen_scratch_floats(std::size_t n_in_max) { return kTileRows * n_in_max; }

void frozen_linear(Team& team, std::size_t n_rows, const float* x, const FrozenMatrix& w, float* y,
                   std::span<float> scratch) {
  for_tiles(team, w, scratch, [&](std::size_t begin, std::size_t n, const float* tile) {
    team.gemm({.a = {.data = x, .stride = w.n_in},
               .b = {.data = tile, .stride = w.n_in, .transposed = true},
               .c = y + begin,
               .c_stride = w.n_out,
               .m = n_rows,
               .n = n,
               .k = w.n_in});
  });
}

// dx is summed over the rows of w, tile after tile.
void frozen_linear_backward_input(Team& team, std::size_t n_rows, const float* dy,
                                  const FrozenMatrix& w, float* dx, bool accumulate,
                                  std::span<float> scratch) {
  for_tiles(team, w, scratch, [&](std::size_t begin, std::size_t n, const float* tile) {
    team.gemm({.a = {.data = dy + begin, .stride = w.n_out},
               .b = {.data = tile, .stride = w.n_in},
               .c = dx,
               .c_stride = w.n_in,
               .m = n_rows,
               .n = w.n_in,
               .k = n,
               .accumulate = accumulate || begin > 0});
  });
}

void frozen_embed(Team& team, std::span<const std::int32_t> ids, const FrozenMatrix& table,
                  float* out) {
  team.for_parts(ids.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      quant::dequantize_row(table.type, row_of(table, static_cast<std::size_t>(ids[r])), table.n_in,
                            out + r * table.n_in);
    }
  });
}

}  // namespace recua::train
