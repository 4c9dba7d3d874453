#pragma once
/// Cross-entropy of rows of logits against the tokens that came.

#include <cstddef>
#include <cstdint>
#include <span>

#include "train/team.h"

namespace recua::train {

/// The rows to score: targets[r] is a column; a row with counts[r] == 0 has no loss.
struct Targets {
  std::span<const std::int32_t> ids = {};
  std::span<const std::uint8_t> counts = {};
};

/// losses[r] = -log softmax(logits[r])[target], or 0.   logits: [n_rows, vocab_size]; spoilt.
void cross_entropy(Team& team, const Targets& targets, std::size_t vocab_size, float* logits,
                   std::span<float> losses);

/// The same, and logits become their gradient: scale * (softmax - one at the target), or 0.
void cross_entropy_backward(Team& team, const Targets& targets, std::size_t vocab_size, float scale,
                            float* logits, std::span<float> losses);

}  // namespace recua::train
