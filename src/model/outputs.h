#pragma once
/// From a row of logits to what an OutputRequest asks for. Runs on the host, in the last slice, so
/// that a token and not its logits travel (docs/decisions/0001-the-last-slice-samples.md).

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/executor.h"
#include "sampling/sampler.h"

namespace recua::model {

/// Keeps working memory between calls. Threads: one at a time.
class OutputMaker {
 public:
  /// request: checked (model/batch_tables.h). logits: [vocab_size] of the row. history: the row's
  /// sequence up to and including the row's token.
  /// kCorrupt: the logits are NaN or infinite.
  Result<StepOutput> make(const OutputRequest& request, std::span<const float> logits,
                          std::span<const TokenId> history);

 private:
  sampling::Sampler sampler_;
  std::vector<sampling::Candidate> top_;
};

}  // namespace recua::model
