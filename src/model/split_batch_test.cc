#include "model/split_batch.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::model {
namespace {

StepBatch random_batch(Rng& rng, std::uint32_t page_tokens) {
  StepBatch batch;
  std::uint32_t row = 0;
  PageId page = 0;
  for (SequenceId seq = 0; seq < 1 + rng.below(4); ++seq) {
    const auto position = static_cast<std::uint32_t>(rng.below(20));
    const auto n = static_cast<std::uint32_t>(1 + rng.below(30));
    SequencePart part{.seq = seq, .position = position};
    for (std::uint32_t i = 0; i < n; ++i) {
      part.tokens.push_back(static_cast<TokenId>(rng.below(100)));
      if (rng.below(3) == 0) {
        batch.outputs.push_back({.row = row + i, .kind = OutputRequest::Kind::kSample});
      }
    }
    const std::uint32_t had = (position + page_tokens - 1) / page_tokens;
    const std::uint32_t need = (position + n + page_tokens - 1) / page_tokens;
    for (std::uint32_t i = had; i < need; ++i) part.new_pages.push_back(page++);
    row += n;
    batch.parts.push_back(std::move(part));
  }
  batch.ops.push_back({.kind = SequenceOp::Kind::kFree, .seq = 9});
  return batch;
}

TEST(SplitBatch, PiecesPutTogetherAreTheBatch) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    constexpr std::uint32_t kPageTokens = 8;
    const StepBatch batch = random_batch(rng, kPageTokens);
    const auto n_rows = static_cast<std::uint32_t>(1 + rng.below(16));
    const auto n_outputs = static_cast<std::uint32_t>(1 + rng.below(5));
    const auto pieces = split_batch(batch, n_rows, n_outputs, kPageTokens);

    StepBatch joined;
    std::uint32_t row = 0;
    for (const MicroBatch& piece : pieces) {
      EXPECT_LE(piece.batch.n_rows(), n_rows);
      EXPECT_GE(piece.batch.n_rows(), 1u);
      EXPECT_LE(piece.batch.outputs.size(), n_outputs);
      EXPECT_EQ(piece.row_begin, row);
      for (const SequenceOp& op : piece.batch.ops) joined.ops.push_back(op);
      for (OutputRequest request : piece.batch.outputs) {
        EXPECT_LT(request.row, piece.batch.n_rows());
        request.row += piece.row_begin;
        joined.outputs.push_back(request);
      }
      for (const SequencePart& part : piece.batch.parts) {
        // Exactly the pages that these tokens need beyond those the sequence has.
        const auto end = static_cast<std::uint32_t>(part.position + part.tokens.size());
        EXPECT_EQ(part.new_pages.size(), (end + kPageTokens - 1) / kPageTokens -
                                             (part.position + kPageTokens - 1) / kPageTokens);
        if (!joined.parts.empty() && joined.parts.back().seq == part.seq) {
          SequencePart& whole = joined.parts.back();
          EXPECT_EQ(part.position, whole.position + whole.tokens.size());
          whole.tokens.insert(whole.tokens.end(), part.tokens.begin(), part.tokens.end());
          whole.new_pages.insert(whole.new_pages.end(), part.new_pages.begin(),
                                 part.new_pages.end());
        } else {
          joined.parts.push_back(part);
        }
      }
      row += static_cast<std::uint32_t>(piece.batch.n_rows());
    }
    EXPECT_EQ(joined, batch);
  }
}

TEST(SplitBatch, OperationsAloneMakeOnePiece) {
  StepBatch batch;
  EXPECT_TRUE(split_batch(batch, 4, 4, 8).empty());
  batch.ops.push_back({.kind = SequenceOp::Kind::kFree, .seq = 1});
  ASSERT_EQ(split_batch(batch, 4, 4, 8).size(), 1u);
}

TEST(SplitBatch, KeepsRequestsForRowsThatDoNotExist) {
  StepBatch batch;
  batch.parts.push_back({.seq = 0, .position = 0, .tokens = {1, 2, 3}, .new_pages = {0}});
  batch.outputs.push_back({.row = 7, .kind = OutputRequest::Kind::kSample});
  const auto pieces = split_batch(batch, 2, 2, 8);
  ASSERT_EQ(pieces.size(), 2u);
  ASSERT_EQ(pieces[1].batch.outputs.size(), 1u);
  EXPECT_EQ(pieces[1].batch.outputs[0].row, 5u);
}

TEST(MergeResult, RestoresRowNumbers) {
  MicroBatch piece{.batch = {}, .row_begin = 10};
  StepResult part;
  part.outputs.push_back({.row = 2, .id = 5});
  StepResult all;
  merge_result(piece, part, all);
  ASSERT_EQ(all.outputs.size(), 1u);
  EXPECT_EQ(all.outputs[0].row, 12u);
}

}  // namespace
}  // namespace recua::model
