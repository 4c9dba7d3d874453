#pragma once
/// Examples packed one after another into the rows of a pass.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "train/attention.h"
#include "train/dataset.h"

namespace recua::train {

/// What a Batch of n_sequences with n_ctx rows each takes.
std::uint64_t batch_bytes(std::size_t n_sequences, std::size_t n_ctx);

struct Batch {
  std::vector<std::int32_t> inputs;      // [n_rows]
  std::vector<std::int32_t> targets;     // [n_rows]
  std::vector<std::uint8_t> counts;      // [n_rows]: whether the target enters the loss.
  std::vector<std::uint32_t> positions;  // [n_rows]: within the row's sequence.
  std::vector<SequenceRows> sequences;

  [[nodiscard]] std::size_t n_rows() const { return inputs.size(); }
  [[nodiscard]] std::size_t n_counted() const;
  void clear();
  void reserve(std::size_t n_sequences, std::size_t n_ctx);
  /// Appends an example's rows.
  void add(const Example& example);
};

}  // namespace recua::train
