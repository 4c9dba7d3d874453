#include "train/linear.h"

#include <algorithm>

namespace recua::train {

void linear(Team& team, const LinearShape& shape, const float* x, const float* w, float* y) {
  team.gemm({.a = {.data = x, .stride = shape.n_in},
             .b = {.data = w, .stride = shape.n_in, .transposed = true},
             .c = y,
             .c_stride = shape.n_out,
             .m = shape.n_rows,
             .n = shape.n_out,
             .k = shape.n_in});
}

void linear_backward_input(Team& team, const LinearShape& shape, const float* dy, const float* w,
                           float* dx, bool accumulate) {
  team.gemm({.a = {.data = dy, .stride = shape.n_out},
             .b = {.data = w, .stride = shape.n_in},
             .c = dx,
             .c_stride = shape.n_in,
             .m = shape.n_rows,
             .n = shape.n_in,
             .k = shape.n_out,
             .accumulate = accumulate});
}

void linear_backward_weight(Team& team, const LinearShape& shape, const float* dy, const float* x,
                            float* dw) {
  team.gemm({.a = {.data = dy, .stride = shape.n_out, .transposed = true},
             .b = {.data = x, .stride = shape.n_in},
             .c = dw,
             .c_stride = shape.n_in,
             .m = shape.n_out,
             .n = shape.n_in,
             .k = shape.n_rows,
             .accumulate = true});
}

void add_bias(Team& team, std::size_t n_rows, std::size_t n, const float* bias, float* y) {
  team.for_parts(n_rows, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) team.kernels().add(y + r * n, bias, n, y + r * n);
  });
}

void bias_backward(Team& team, std::size_t n_rows, std::size_t n, const float* dy, float* d_bias) {
  team.for_parts(n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = 0; r < n_rows; ++r) {
      for (std::size_t i = begin; i < end; ++i) d_bias[i] += dy[r * n + i];
    }
  });
}

void embed(Team& team, std::span<const std::int32_t> ids, std::size_t n, const float* table,
           float* out) {
  team.for_parts(ids.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      std::copy_n(table + static_cast<std::size_t>(ids[r]) * n, n, out + r * n);
    }
  });
}

// Threads take columns: rows of one token then add up in order.
void embed_backward(Team& team, std::span<const std::int32_t> ids, std::size_t n,
                    const float* d_out, float* d_table) {
  team.for_parts(n, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = 0; r < ids.size(); ++r) {
      float* const row = d_table + static_cast<std::size_t>(ids[r]) * n;
      for (std::size_t i = begin; i < end; ++i) row[i] += d_out[r * n + i];
    }
  });
}

}  // namespace recua::train
