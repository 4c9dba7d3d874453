#pragma once
/// Matrix products, biases and embedding rows, forward and backward. Rows lie one after another.

#include <cstddef>
#include <cstdint>
#include <span>

#include "train/team.h"

namespace recua::train {

struct LinearShape {
  std::size_t n_rows = 0;
  std::size_t n_in = 0;
  std::size_t n_out = 0;
};

/// y = x w^T.   x: [n_rows, n_in], w: [n_out, n_in], y: [n_rows, n_out].
void linear(Team& team, const LinearShape& shape, const float* x, const float* w, float* y);
/// dx = dy w, or added to dx.
void linear_backward_input(Team& team, const LinearShape& shape, const float* dy, const float* w,
                           float* dx, bool accumulate);
/// dw += dy^T x.
void linear_backward_weight(Team& team, const LinearShape& shape, const float* dy, const float* x,
                            float* dw);

/// y[r, i] += bias[i].   y: [n_rows, n].
void add_bias(Team& team, std::size_t n_rows, std::size_t n, const float* bias, float* y);
/// d_bias[i] += sum over r of dy[r, i].
void bias_backward(Team& team, std::size_t n_rows, std::size_t n, const float* dy, float* d_bias);

/// out[r] = table[ids[r]].   table: [vocab_size, n]; every id is a row of it.
void embed(Team& team, std::span<const std::int32_t> ids, std::size_t n, const float* table,
           float* out);
/// d_table[ids[r]] += d_out[r], r ascending.
void embed_backward(Team& team, std::span<const std::int32_t> ids, std::size_t n,
                    const float* d_out, float* d_table);

}  // namespace recua::train
