#pragma once
/// Products with matrices that stay as a model's file has them: of any type, mapped, never changed.
///
/// A tile of rows at a time is made f32 in shared scratch memory and multiplied like any other, so
/// there is never an f32 copy of a matrix. A tile has as many rows as the product sums in a block
/// (kGemmBlockK): the results have the bits of train/linear.h on the same matrix in f32. (Not so in
/// the backward pass of the scalar set, which sums a whole product in f64.)

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/data_type.h"
#include "train/team.h"

namespace recua::train {

/// [n_out, n_in]; a row is quant::row_bytes(type, n_in) bytes. Borrowed.
struct FrozenMatrix {
  quant::DataType type = quant::DataType::kF32;
  const std::byte* data = nullptr;
  std::size_t n_in = 0;
  std::size_t n_out = 0;
};

/// Floats of scratch memory for matrices whose rows have at most n_in_max elements.
std::size_t frozen_scratch_floats(std::size_t n_in_max);

/// y = x w^T.   x: [n_rows, w.n_in], y: [n_rows, w.n_out].
void frozen_linear(Team& team, std::size_t n_rows, const float* x, const FrozenMatrix& w, float* y,
                   std::span<float> scratch);
/// dx = dy w, or added to dx.
void frozen_linear_backward_input(Team& team, std::size_t n_rows, const float* dy,
                                  const FrozenMatrix& w, float* dx, bool accumulate,
                                  std::span<float> scratch);

/// out[r] = row ids[r] of the table; every id is one.
void frozen_embed(Team& team, std::span<const std::int32_t> ids, const FrozenMatrix& table,
                  float* out);

}  // namespace recua::train
