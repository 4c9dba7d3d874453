#pragma once
/// How the next token is chosen. The flags of the command line and the fields of a request end
/// here.

#include <cstdint>
#include <vector>

#include "tokenizer/token.h"

namespace recua::sampling {

struct LogitBias {
  tokenizer::TokenId id = 0;
  float bias = 0.0F;  // Added to the logit; -infinity forbids the token.

  friend bool operator==(const LogitBias&, const LogitBias&) = default;
};

struct SamplingParams {
  float temperature = 0.8F;         // 0 or below: greedy (the largest logit; ties: the lower id).
  std::int32_t top_k = 40;          // 0 or below: off.
  float top_p = 0.95F;              // 1: off.
  float min_p = 0.05F;              // 0: off.
  float typical_p = 1.0F;           // 1: off.
  float repeat_penalty = 1.0F;      // 1: off.
  float frequency_penalty = 0.0F;   // 0: off.
  float presence_penalty = 0.0F;    // 0: off.
  std::int32_t repeat_last_n = 64;  // Tokens that penalties look at; 0: none, -1: all.
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;  // Which of several answers to one prompt.
  std::vector<LogitBias> logit_bias = {};

  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

}  // namespace recua::sampling
