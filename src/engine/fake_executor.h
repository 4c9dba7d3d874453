#pragma once
/// FakeExecutor: an executor for tests whose model is exact. The next token of a sequence is a hash
/// of all its tokens and of the sampling seed, so any mistake in batching, paging or replay changes
/// the answer. It refuses every batch that breaks a rule of model/executor.h, and can be told to
/// fail.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "model/executor.h"

namespace recua::engine {

/// What the model of FakeExecutor says after these tokens.
TokenId fake_next_token(std::span<const TokenId> tokens, std::uint64_t seed,
                        std::uint32_t vocab_size);
/// Its log-probability for any token after these tokens.
float fake_logprob(std::span<const TokenId> tokens, TokenId id);

class FakeExecutor final : public model::Executor {
 public:
  explicit FakeExecutor(const model::ExecutorInfo& info) : info_(info) {}

  [[nodiscard]] const model::ExecutorInfo& info() const override { return info_; }
  boost::asio::awaitable<Result<model::StepResult>> step(model::StepBatch batch) override;

  /// Asked before each step, which is counted from 0: an error makes the step fail with it.
  /// kCachesLost forgets all sequences. `half_done` (see below) decides about the others.
  std::function<std::optional<Error>(std::size_t step, const model::StepBatch& batch)> fault;
  /// A failing step has taken effect already, as if a later micro-batch had failed.
  bool half_done = false;
  /// Goes through the loop so many times before it answers.
  std::function<int()> n_hops;

  [[nodiscard]] std::size_t n_steps() const { return n_steps_; }
  [[nodiscard]] std::size_t n_sequences() const { return sequences_.size(); }
  [[nodiscard]] std::size_t most_parts() const { return most_parts_; }
  [[nodiscard]] std::size_t n_pages_used() const { return used_.size(); }
  /// Batches that broke a rule; stays empty if the engine is right.
  [[nodiscard]] const std::vector<std::string>& offences() const { return offences_; }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    std::vector<model::PageId> pages;
  };

  std::optional<std::string> apply(const model::StepBatch& batch, model::StepResult& result);
  std::optional<std::string> append(const model::SequencePart& part,
                                    std::set<model::SequenceId>& seen);

  model::ExecutorInfo info_;
  std::map<model::SequenceId, Sequence> sequences_;
  std::set<model::PageId> used_;
  std::vector<std::string> offences_;
  std::size_t n_steps_ = 0;
  std::size_t most_parts_ = 0;
};

}  // namespace recua::engine
