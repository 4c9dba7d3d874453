#include "model/part_layout.h"

#include <algorithm>

namespace recua::model {

PartLayout::PartLayout(const TensorPart& part, quant::DataType type) {
  const Range cols = whole_blocks(part.cols, quant::traits(type).block_size);
  const std::size_t row_bytes = quant::row_bytes(type, part.n_in);
  const std::size_t n_rows = part.rows.size();
  run_bytes_ = quant::row_bytes(type, cols.size());
  if (run_bytes_ == 0 || n_rows == 0 || part.n_experts == 0) {
    run_bytes_ = 0;
    return;
  }
  first_ = part.rows.begin * row_bytes + quant::row_bytes(type, cols.begin);
  stride_ = row_bytes;
  expert_stride_ = part.n_out * row_bytes;
  runs_per_expert_ = n_rows;
  n_runs_ = n_rows * part.n_experts;
  if (run_bytes_ < row_bytes) return;
  // Whole rows follow one another, and so do whole experts.
  run_bytes_ *= n_rows;
  stride_ = expert_stride_;
  runs_per_expert_ = 1;
  n_runs_ = part.n_experts;
  if (run_bytes_ < expert_stride_) return;
  run_bytes_ *= part.n_experts;
  stride_ = expert_stride_ = run_bytes_;
  n_runs_ = 1;
}

std::size_t PartLayout::run_at(std::size_t offset) const {
  if (offset < first_) return 0;
  const std::size_t expert = (offset - first_) / expert_stride_;
  const std::size_t row = (offset - first_ - expert * expert_stride_) / stride_;
  // Behind the expert's last run comes the first of the next one.
  if (row >= runs_per_expert_) return std::min(n_runs_, (expert + 1) * runs_per_expert_);
  const std::size_t run = std::min(n_runs_, expert * runs_per_expert_ + row);
  return run < n_runs_ && start(run) + run_bytes_ <= offset ? run + 1 : run;
}

bool PartLayout::touches(std::size_t begin, std::size_t end) const {
  const std::size_t run = run_at(begin);
  return run < n_runs_ && start(run) < end;
}

void PartLayout::for_each_piece(std::size_t begin, std::size_t end, const Piece& piece) const {
  for (std::size_t run = run_at(begin); run < n_runs_ && start(run) < end; ++run) {
    const std::size_t from = std::max(begin, start(run));
    const std::size_t to = std::min(end, start(run) + run_bytes_);
    piece(from, run * run_bytes_ + (from - start(run)), to - from);
  }
}

}  // namespace recua::model
