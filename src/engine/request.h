#pragma once
/// What the engine is asked for, and what it answers.

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/executor.h"
#include "sampling/params.h"
#include "tokenizer/token.h"

namespace recua::engine {

using model::TokenProbability;

/// Names a request as long as the engine lives.
using RequestId = std::uint64_t;

struct Request {
  std::vector<TokenId> prompt;  // At least one token.
  /// Most tokens to generate. 0: only score the prompt. nullopt: until the context is full.
  std::optional<std::uint32_t> n_predict;
  sampling::SamplingParams sampling;
  /// True for tokens that end the text; such a token is not reported. Empty: nothing ends it.
  std::function<bool(TokenId)> is_end;
  std::uint32_t n_top = 0;  // How many of the most probable tokens come with each generated one.
  /// Set: report each prompt token with its probability and so many of the most probable.
  std::optional<std::uint32_t> prompt_n_top;
};

struct TokenEvent {
  /// A token of the prompt (only if asked for, from the second on, since the first has nothing
  /// before it), or a generated one.
  bool is_prompt = false;
  std::uint32_t position = 0;  // In the sequence; the prompt begins at 0.
  TokenId id = 0;
  float logprob = 0.0F;               // Natural logarithm, of the unmodified distribution.
  std::vector<TokenProbability> top;  // Descending.

  friend bool operator==(const TokenEvent&, const TokenEvent&) = default;
};

enum class FinishReason {
  kStop,       // The model ended the text.
  kLength,     // n_predict tokens were generated, or the context is full.
  kCancelled,  // Somebody called cancel().
  kError,      // The executor failed; see Finish::error.
};

/// "stop", "length", "cancelled", "error".
std::string_view to_string(FinishReason reason);

struct Finish {
  FinishReason reason = FinishReason::kStop;
  std::optional<Error> error;  // kError only.
  std::uint32_t n_prompt = 0;
  std::uint32_t n_generated = 0;
  /// From the first step that held the request to its first generated token (or scored prompt).
  std::chrono::nanoseconds prefill_time{};
  /// From the first generated token to the last.
  std::chrono::nanoseconds decode_time{};
};

/// Called on the engine's loop. They may call the engine, submit() and cancel() included.
struct RequestCallbacks {
  std::function<void(TokenEvent&&)> on_token;
  std::function<void(Finish&&)> on_finish;  // Exactly once, last.
};

}  // namespace recua::engine
