#pragma once
/// Where the bytes of a rank's part lie in the whole tensor, for whoever gets the tensor piece by
/// piece: a part of rows is one run of bytes per expert, a part of columns one per row.
///
/// Shapes may come from a peer that lies: nothing here goes past the end of the tensor or the part.
/// Threads: any; no state after construction.

#include <cstddef>
#include <functional>

#include "model/tensor_part.h"
#include "quant/data_type.h"

namespace recua::model {

class PartLayout {
 public:
  PartLayout(const TensorPart& part, quant::DataType type);

  /// Of the part, as part_bytes().
  [[nodiscard]] std::size_t bytes() const { return n_runs_ * run_bytes_; }
  /// Whether any of the part lies in the bytes [begin, end) of the whole tensor.
  [[nodiscard]] bool touches(std::size_t begin, std::size_t end) const;

  using Piece = std::function<void(std::size_t in_whole, std::size_t in_part, std::size_t bytes)>;
  /// Calls `piece` for each run of bytes that lies in [begin, end) of the whole tensor, in order.
  void for_each_piece(std::size_t begin, std::size_t end, const Piece& piece) const;

 private:
  [[nodiscard]] std::size_t start(std::size_t run) const {
    return first_ + run / runs_per_expert_ * expert_stride_ + run % runs_per_expert_ * stride_;
  }
  /// The first run that ends behind this byte of the whole tensor; n_runs_: none.
  [[nodiscard]] std::size_t run_at(std::size_t offset) const;

  std::size_t run_bytes_ = 0;
  std::size_t n_runs_ = 0;
  std::size_t runs_per_expert_ = 1;
  std::size_t first_ = 0;          // Where the first run begins.
  std::size_t stride_ = 1;         // From run to run within an expert.
  std::size_t expert_stride_ = 1;  // From expert to expert.
};

}  // namespace recua::model
