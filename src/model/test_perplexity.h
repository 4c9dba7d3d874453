#pragma once
/// For tests: how well a model predicts a text, by the method of tests/golden/models/README.md.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "model/test_models.h"

namespace recua::model {

inline std::string read_story() {
  std::ifstream in(std::string(RECUA_GOLDEN_DIR) + "/models/story.txt");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Windows of n_ctx - 1 tokens, each after bos; every token of the text is scored.
inline double perplexity(LocalExecutor& executor, std::span<const TokenId> ids, TokenId bos,
                         std::uint32_t n_ctx) {
  double nll = 0.0;
  for (std::size_t begin = 0; begin < ids.size(); begin += n_ctx - 1) {
    const std::size_t n = std::min<std::size_t>(n_ctx - 1, ids.size() - begin);
    TestSequence sequence;
    StepBatch batch;
    if (begin > 0) batch.ops.push_back({.kind = SequenceOp::Kind::kFree});
    std::vector<TokenId> window = {bos};
    for (std::size_t i = 0; i < n; ++i) {
      window.push_back(ids[begin + i]);
      batch.outputs.push_back({.row = static_cast<std::uint32_t>(i),
                               .kind = OutputRequest::Kind::kScore,
                               .target = ids[begin + i]});
    }
    window.pop_back();  // Nobody asks what follows the last token.
    batch.parts.push_back(sequence.next(window));
    const auto result = executor.run(batch);
    EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
    if (!result.ok()) return NAN;
    EXPECT_EQ(result->outputs.size(), n);
    for (const StepOutput& output : result->outputs) nll -= static_cast<double>(output.logprob);
  }
  return std::exp(nll / static_cast<double>(ids.size()));
}

}  // namespace recua::model
