#include "model/batch_tables.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "sampling/sampler.h"

namespace recua::model {
namespace {

template <class... Args>
Error wrong(fmt::format_string<Args...> format, Args&&... args) {
  return Error{ErrorCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}

bool in_vocabulary(TokenId id, std::uint32_t vocab_size) {
  return id >= 0 && static_cast<std::uint32_t>(id) < vocab_size;
}

Result<void> check_tokens(const SequencePart& part, std::uint32_t vocab_size) {
  for (std::size_t i = 0; i < part.tokens.size(); ++i) {
    if (in_vocabulary(part.tokens[i], vocab_size)) continue;
    return wrong("sequence {}, position {}: token id {}; expected 0 to {}", part.seq,
                 part.position + i, part.tokens[i], vocab_size - 1);
  }
  return ok();
}

Result<void> check_output(const OutputRequest& output, std::uint32_t vocab_size) {
  const std::uint32_t n_top_max = std::min(kTopMax, vocab_size);
  if (output.n_top > n_top_max) {
    return wrong("output of row {}: {} most probable tokens are asked for; at most {} can be",
                 output.row, output.n_top, n_top_max);
  }
  switch (output.kind) {
    case OutputRequest::Kind::kSample: {
      Result<void> valid = sampling::validate(output.sampling, vocab_size);
      if (valid.ok()) return ok();
      return std::move(valid).error().within(fmt::format("output of row {}", output.row));
    }
    case OutputRequest::Kind::kScore:
      if (in_vocabulary(output.target, vocab_size)) return ok();
      return wrong("output of row {}: target {}; expected a token id from 0 to {}", output.row,
                   output.target, vocab_size - 1);
    case OutputRequest::Kind::kLogits:
      return ok();
  }
  return wrong("output of row {}: kind {}; expected 1 (sample), 2 (score) or 3 (logits)",
               output.row, static_cast<unsigned>(output.kind));
}

/// What can be said about a batch without the tables.
Result<void> check_shape(const StepBatch& batch, std::size_t n_rows_max, std::size_t n_outputs_max,
                         std::uint32_t vocab_size) {
  const std::size_t n_rows = batch.n_rows();
  if (n_rows > n_rows_max) {
    return wrong("the batch has {} rows; at most {} fit", n_rows, n_rows_max);
  }
  if (batch.outputs.size() > n_outputs_max) {
    return wrong("the batch asks for {} outputs; at most {} fit", batch.outputs.size(),
                 n_outputs_max);
  }
  for (const SequencePart& part : batch.parts) {
    RECUA_RETURN_IF_ERROR(check_tokens(part, vocab_size));
  }
  for (std::size_t i = 0; i < batch.outputs.size(); ++i) {
    const OutputRequest& output = batch.outputs[i];
    if (output.row >= n_rows) {
      return wrong("an output is asked for row {} of {}", output.row, n_rows);
    }
    if (i > 0 && output.row <= batch.outputs[i - 1].row) {
      return wrong(
          "output of row {} comes after that of row {}; expected ascending rows, each once",
          output.row, batch.outputs[i - 1].row);
    }
    RECUA_RETURN_IF_ERROR(check_output(output, vocab_size));
  }
  return ok();
}

Result<void> apply_op(const SequenceOp& op, kv::SequenceTable& table) {
  switch (op.kind) {
    case SequenceOp::Kind::kFree:
      return table.free(op.seq);
    case SequenceOp::Kind::kTruncate:
      return table.truncate(op.seq, op.n_tokens);
    case SequenceOp::Kind::kFork:
      return table.fork(op.seq, op.source, op.n_tokens, op.page);
  }
  return wrong("operation on sequence {}: kind {}; expected 1 (free), 2 (truncate) or 3 (fork)",
               op.seq, static_cast<unsigned>(op.kind));
}

/// A group of changes that is taken back unless it was committed, also when memory runs out in it.
class Group {
 public:
  explicit Group(kv::SequenceTable& table) : table_(table) { table_.begin(); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (!committed_) table_.rollback();
  }

  void commit() {
    table_.commit();
    committed_ = true;
  }

 private:
  kv::SequenceTable& table_;
  bool committed_ = false;
};

}  // namespace

Result<void> BatchTables::apply(const StepBatch& batch) {
  RECUA_RETURN_IF_ERROR(check_shape(batch, limits_.n_rows, limits_.n_outputs, limits_.vocab_size));
  Group group(table_);
  RECUA_RETURN_IF_ERROR(apply_group(batch));
  group.commit();
  return ok();
}

Result<void> BatchTables::check(const StepBatch& batch, std::uint32_t n_rows_max) {
  RECUA_RETURN_IF_ERROR(check_shape(batch, n_rows_max, n_rows_max, limits_.vocab_size));
  const Group group(table_);
  return apply_group(batch);
}

Result<void> BatchTables::apply_group(const StepBatch& batch) {
  for (const SequenceOp& op : batch.ops) RECUA_RETURN_IF_ERROR(apply_op(op, table_));
  for (const SequencePart& part : batch.parts) {
    RECUA_RETURN_IF_ERROR(table_.append(part.seq, part.position, part.tokens, part.new_pages));
  }
  return ok();
}

}  // namespace recua::model
