#include "model/split_batch.h"

#include <algorithm>
#include <utility>

namespace recua::model {
namespace {

/// Pages that hold the first n tokens of a sequence.
std::uint64_t pages_for(std::uint64_t n_tokens, std::uint32_t page_tokens) {
  return n_tokens / page_tokens + (n_tokens % page_tokens != 0 ? 1 : 0);
}

/// Walks through a batch and hands out its rows and outputs piece by piece.
class Cutter {
 public:
  Cutter(const StepBatch& batch, std::uint32_t page_tokens)
      : batch_(batch), page_tokens_(page_tokens) {}

  [[nodiscard]] bool done() const { return part_ == batch_.parts.size(); }

  MicroBatch next(std::uint32_t n_rows, std::uint32_t n_outputs) {
    MicroBatch piece{.batch = {}, .row_begin = row_};
    std::uint32_t rows_left = n_rows;
    while (!done() && rows_left > 0) {
      const SequencePart& part = batch_.parts[part_];
      const auto in_part = static_cast<std::uint32_t>(part.tokens.size() - token_);
      const std::uint32_t take = rows_before_output(n_outputs, std::min(rows_left, in_part), piece);
      if (take == 0 && in_part > 0) break;  // The piece has all the outputs it may have.
      piece.batch.parts.push_back(cut(part, take));
      rows_left -= take;
      row_ += take;
      token_ += take;
      if (token_ == part.tokens.size()) {
        ++part_;
        token_ = 0;
        pages_ = 0;
      }
    }
    return piece;
  }

  /// Requests for rows that no part has.
  void take_leftover_outputs(MicroBatch& piece) {
    for (; output_ < batch_.outputs.size(); ++output_) push_output(piece);
  }

 private:
  /// How many of the next `wanted` rows fit before one output too many; moves their outputs over.
  std::uint32_t rows_before_output(std::uint32_t n_outputs, std::uint32_t wanted,
                                   MicroBatch& piece) {
    while (output_ < batch_.outputs.size() && batch_.outputs[output_].row < row_ + wanted) {
      if (piece.batch.outputs.size() == n_outputs) {
        const std::uint32_t row = batch_.outputs[output_].row;
        return row > row_ ? row - row_ : 0;
      }
      push_output(piece);
    }
    return wanted;
  }

  void push_output(MicroBatch& piece) {
    OutputRequest request = batch_.outputs[output_++];
    request.row -= piece.row_begin;
    piece.batch.outputs.push_back(std::move(request));
  }

  SequencePart cut(const SequencePart& part, std::uint32_t take) {
    const auto begin = part.tokens.begin() + token_;
    const bool last = token_ + take == part.tokens.size();
    const std::uint64_t end_pages = pages_for(part.position + part.tokens.size(), page_tokens_);
    const std::uint64_t had = end_pages - std::min<std::uint64_t>(end_pages, part.new_pages.size());
    const std::uint64_t need =
        pages_for(std::uint64_t{part.position} + token_ + take, page_tokens_);
    const std::size_t pages_end =
        last ? part.new_pages.size()
             : std::clamp<std::size_t>(need > had ? need - had : 0, pages_, part.new_pages.size());
    SequencePart out{
        .seq = part.seq,
        .position = part.position + token_,
        .tokens = {begin, begin + take},
        .new_pages = {part.new_pages.begin() + static_cast<std::ptrdiff_t>(pages_),
                      part.new_pages.begin() + static_cast<std::ptrdiff_t>(pages_end)}};
    pages_ = pages_end;
    return out;
  }

  const StepBatch& batch_;
  std::uint32_t page_tokens_;
  std::size_t part_ = 0;
  std::uint32_t token_ = 0;  // Within the part.
  std::size_t pages_ = 0;    // Of the part's new pages, handed out.
  std::size_t output_ = 0;
  std::uint32_t row_ = 0;  // Over all parts.
};

}  // namespace

std::vector<MicroBatch> split_batch(const StepBatch& batch, std::uint32_t n_rows,
                                    std::uint32_t n_outputs, std::uint32_t page_tokens) {
  std::vector<MicroBatch> pieces;
  Cutter cutter(batch, page_tokens);
  while (!cutter.done()) pieces.push_back(cutter.next(n_rows, n_outputs));
  if (pieces.empty() && !(batch.ops.empty() && batch.outputs.empty())) pieces.emplace_back();
  if (!pieces.empty()) {
    cutter.take_leftover_outputs(pieces.back());
    pieces.front().batch.ops = batch.ops;
  }
  return pieces;
}

void merge_result(const MicroBatch& piece, StepResult part, StepResult& into) {
  for (StepOutput& output : part.outputs) {
    output.row += piece.row_begin;
    into.outputs.push_back(std::move(output));
  }
}

}  // namespace recua::model
