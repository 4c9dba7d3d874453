#pragma once
/// The sequences that `recua bench` measures: all of one length, made longer by steps and cut
/// again.

#include <cstdint>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/random.h"
#include "base/result.h"
#include "cli/backend.h"
#include "model/executor.h"

namespace recua::cli {

class BenchSequences {
 public:
  /// What generates its next token in one step: all sequences, as a server that batches requests,
  /// or each in steps of its own, which then may be under way at the same time.
  enum class Steps { kTogether, kApart };

  /// The backend, which outlives this, was opened for so many sequences.
  BenchSequences(Backend& backend, std::uint32_t n_sequences, Steps steps);

  /// Appends n tokens to each, one sequence after the other, in steps as large as they may be.
  Result<void> prefill(std::uint32_t n);
  /// Appends n tokens to each, one at a time.
  Result<void> generate(std::uint32_t n);
  /// Back to n_tokens each; takes effect with the next step.
  void truncate(std::uint32_t n_tokens);

 private:
  struct Sequence {
    model::SequenceId id = 0;
    std::uint32_t n_tokens = 0;
    std::vector<model::SequenceOp> ops = {};
  };

  /// Adds n tokens of the sequence, and asks for the one after them.
  void extend(model::StepBatch& batch, Sequence& sequence, std::uint32_t n);
  Result<void> run(model::StepBatch batch);
  boost::asio::awaitable<Result<void>> generate_apart(Sequence& sequence, std::uint32_t n);

  Backend* backend_;
  const model::ExecutorInfo& info_;
  Steps steps_;
  Rng rng_{1};
  std::vector<Sequence> sequences_;
};

}  // namespace recua::cli
