#pragma once
/// The product with an adapted matrix: what a low-rank pair adds to it, forward and backward.
///
///   y += scale * (x a^T) b^T.   a: [rank, n_in], b: [n_out, rank].
/// x a^T is made anew in the backward pass: that is rank / n_out of the work of the product itself.
/// Source: Hu et al. 2021.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/linear.h"

namespace recua::train {

struct LoraOptions {
  std::size_t rank = 8;
  float alpha = 16.0F;                    // scale = alpha / rank.
  std::vector<std::string> targets = {};  // Of model::kLoraMatrices, in that order; not empty.

  [[nodiscard]] float scale() const { return alpha / static_cast<float>(rank); }
};

/// Names of matrices, separated by commas: those of the file ("attn_q"), those that PEFT uses
/// ("q_proj"), or "all". kInvalidArgument: an unknown one, or none; lists the known ones.
Result<std::vector<std::string>> parse_lora_targets(std::string_view text);

/// A pair in memory.
struct LoraPair {
  const float* a = nullptr;
  const float* b = nullptr;
  std::size_t rank = 0;
  float scale = 1.0F;
};

/// scratch: [2, n_rows, rank] floats, here and below.
void lora_forward(Team& team, const LinearShape& shape, const float* x, const LoraPair& pair,
                  float* y, std::span<float> scratch);

/// Adds the pair's part to dx, and the gradients of a and b to da and db.
struct LoraGradients {
  float* da = nullptr;
  float* db = nullptr;
};
void lora_backward(Team& team, const LinearShape& shape, const float* dy, const float* x,
                   const LoraPair& pair, float* dx, const LoraGradients& gradients,
                   std::span<float> scratch);

}  // namespace recua::train
