#pragma once
/// How a step is cut into micro-batches: pieces that a slice runs at once and that travel the
/// pipeline one after the other. Since every row's result depends only on itself and its sequence's
/// past, the cut does not change results.

#include <cstdint>
#include <vector>

#include "model/executor.h"

namespace recua::model {

struct MicroBatch {
  StepBatch batch;              // Rows are numbered from 0 again.
  std::uint32_t row_begin = 0;  // Its first row in the step.
};

/// Pieces of at most n_rows rows and n_outputs outputs (both >= 1), in order. Sequence operations
/// go with the first piece, new pages with the piece whose tokens need them. A batch with nothing
/// in it gives no piece; one with operations only gives one piece. The batch may be wrong (it is
/// checked by SliceRunner::run()): leftover pages stay with a part's last piece, output requests of
/// rows that do not exist with the last piece.
std::vector<MicroBatch> split_batch(const StepBatch& batch, std::uint32_t n_rows,
                                    std::uint32_t n_outputs, std::uint32_t page_tokens);

/// Appends a piece's outputs to the step's, with the step's row numbers. Pieces in order.
void merge_result(const MicroBatch& piece, StepResult part, StepResult& into);

}  // namespace recua::model
