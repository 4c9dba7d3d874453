#pragma once
/// From a row of logits to what an OutputRequest asks for. Runs on the host, in the last slice, so
/// that a token and not its logits travel (docs/decisions/0001-the-last-slice-samples.md).

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/executor.h"
#include "sampling/logits.h"
#include "sampling/sampler.h"

namespace recua::model {

/// The largest logit of a row, and the logarithm of the sum of all exp(logit).
struct LogitSummary {
  sampling::Candidate best = {};
  double log_sum = 0.0;
};
/// kCorrupt: the logits are NaN or infinite.
Result<LogitSummary> summarize(std::span<const float> logits);

/// Keeps working memory between calls. Threads: one at a time.
class OutputMaker {
 public:
  /// request: checked (model/batch_tables.h). logits: [vocab_size] of the row, summary: theirs;
  /// what the request does not look at may be -infinity (model/split_outputs.h). history: the
  /// row's sequence up to and including the row's token. kCorrupt: nothing can be chosen.
  Result<StepOutput> make(const OutputRequest& request, std::span<const float> logits,
                          const LogitSummary& summary, std::span<const TokenId> history);

 private:
  sampling::Sampler sampler_;
  std::vector<sampling::Candidate> top_;
};

}  // namespace recua::model
