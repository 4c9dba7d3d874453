#pragma once
/// Executor: does one step of the model for many sequences. The engine and the cluster meet here:
/// LocalExecutor (model/local_executor.h) runs the whole model in this process, RemoteExecutor
/// (cluster) drives workers, and the engine cannot tell them apart.
///
/// A step first applies its sequence operations in order, then appends each part's tokens to its
/// sequence, then returns what `outputs` ask for. Steps take effect in the order of the calls.
/// Pages: the engine owns the logical page ids [0, n_pages) and says which ones a sequence grows
/// into; every slice checks what it is told against its own tables.
///
/// Errors: kInvalidArgument (the batch is wrong: nothing was changed), kUnavailable (a worker is
/// gone), kCachesLost (the caches of all sequences are gone: free them and replay their tokens).
/// Threads: all calls from the loop that the Executor was made for.

#include <cstdint>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "sampling/params.h"
#include "tokenizer/token.h"

namespace recua::model {

using tokenizer::TokenId;
using SequenceId = std::uint32_t;
using PageId = std::uint32_t;

struct SequenceOp {
  enum class Kind : std::uint8_t {
    kFree = 1,      // Forgets seq; its pages are the engine's again.
    kTruncate = 2,  // Keeps the first n_tokens of seq and the pages they need.
    kFork = 3,      // seq becomes a copy of the first n_tokens of source. Whole pages are shared;
                    // tokens in a last, partly filled page are copied into `page`.
  };
  Kind kind = Kind::kFree;
  SequenceId seq = 0;
  SequenceId source = 0;
  std::uint32_t n_tokens = 0;
  PageId page = 0;

  friend bool operator==(const SequenceOp&, const SequenceOp&) = default;
};

/// Consecutive new tokens of one sequence. A sequence starts to exist with its first part.
struct SequencePart {
  SequenceId seq = 0;
  std::uint32_t position = 0;  // Of the first token: the sequence's length so far.
  std::vector<TokenId> tokens = {};
  /// Exactly those that the tokens need beyond the pages it has.
  std::vector<PageId> new_pages = {};

  friend bool operator==(const SequencePart&, const SequencePart&) = default;
};

/// What to return for a row. Rows are numbered over all parts of the batch, in order.
struct OutputRequest {
  enum class Kind : std::uint8_t {
    kSample = 1,  // Choose a token by `sampling`.
    kScore = 2,   // The log-probability of `target`.
    kLogits = 3,  // All logits: vocab_size floats, so only on request.
  };
  std::uint32_t row = 0;
  Kind kind = Kind::kSample;
  TokenId target = 0;
  std::uint32_t n_top = 0;  // How many of the most probable tokens to return as well.
  sampling::SamplingParams sampling = {};

  friend bool operator==(const OutputRequest&, const OutputRequest&) = default;
};

struct StepBatch {
  std::vector<SequenceOp> ops = {};
  std::vector<SequencePart> parts = {};     // Each sequence at most once.
  std::vector<OutputRequest> outputs = {};  // Ascending rows, each row at most once.

  [[nodiscard]] std::size_t n_rows() const {
    std::size_t n = 0;
    for (const SequencePart& part : parts) n += part.tokens.size();
    return n;
  }
  friend bool operator==(const StepBatch&, const StepBatch&) = default;
};

struct TokenProbability {
  TokenId id = 0;
  float logprob = 0.0F;  // Natural logarithm, of the unmodified distribution.

  friend bool operator==(const TokenProbability&, const TokenProbability&) = default;
};

struct StepOutput {
  std::uint32_t row = 0;
  TokenId id = 0;                          // Sampled, or the target.
  float logprob = 0.0F;                    // Of id, before penalties and temperature.
  std::vector<TokenProbability> top = {};  // Descending; ties: lower id first.
  std::vector<float> logits = {};          // kLogits only.
};

struct StepResult {
  std::vector<StepOutput> outputs = {};  // In the order of the requests.
};

struct ExecutorInfo {
  std::uint32_t vocab_size = 0;
  std::uint32_t n_ctx = 0;  // Longest sequence.
  std::uint32_t n_pages = 0;
  std::uint32_t page_tokens = 0;
  std::uint32_t n_batch = 0;   // Most rows in a step.
  std::uint32_t n_ubatch = 0;  // Rows of a micro-batch: how a step is cut on its way.
  std::string description =
      {};  // "1 slice on cpu avx2, 2 threads" or "2 workers, layers 0-7 | 8-15".
};

class Executor {
 public:
  Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  [[nodiscard]] virtual const ExecutorInfo& info() const = 0;
  virtual boost::asio::awaitable<Result<StepResult>> step(StepBatch batch) = 0;
};

}  // namespace recua::model
