#pragma once
/// Rotary position embeddings and their backward pass, which turns the other way.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/hyperparams.h"
#include "train/team.h"

namespace recua::train {

/// Cosines and sines of every position of a context.
class RopeTable {
 public:
  /// divisors: Llama 3's, or empty (model/rope.h).
  RopeTable(const model::HyperParams& hp, std::span<const float> divisors, std::size_t n_ctx);

  enum class Turn { kForward, kBackward };

  /// Turns each head of each row in place; backward is the transpose of forward.
  /// x: [n_rows, n_heads, head_dim]; positions: [n_rows], below n_ctx.
  void apply(Team& team, std::span<const std::uint32_t> positions, std::size_t n_heads, Turn turn,
             float* x) const;

 private:
  compute::RopeKind kind_;
  std::size_t head_dim_;
  std::size_t n_rot_;
  std::vector<float> forward_;   // [n_ctx, n_rot / 2][cos, sin]
  std::vector<float> backward_;  // The same with sines negated.
};

}  // namespace recua::train
