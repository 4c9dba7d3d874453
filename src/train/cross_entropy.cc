#include "train/cross_entropy.h"

#include <algorithm>
#include <cmath>

namespace recua::train {
namespace {

// -log p[target] = log(sum of exp(x - max)) - (x[target] - max). exp(x - max) replaces the row.
struct RowLoss {
  float loss = 0.0F;
  float sum = 1.0F;
};

RowLoss row_loss(const kernels::KernelTable& kernels, std::size_t target, std::size_t n,
                 float* row) {
  const float at_target = row[target];
  const kernels::SoftmaxPart part = kernels.softmax_part(row, n);
  return {.loss = std::log(part.sum) - (at_target - part.max), .sum = part.sum};
}

}  // namespace

void cross_entropy(Team& team, const Targets& targets, std::size_t vocab_size, float* logits,
                   std::span<float> losses) {
  team.for_parts(targets.ids.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      losses[r] = 0.0F;
      if (targets.counts[r] == 0) continue;
      losses[r] = row_loss(team.kernels(), static_cast<std::size_t>(targets.ids[r]), vocab_size,
                           logits + r * vocab_size)
                      .loss;
    }
  });
}

void cross_entropy_backward(Team& team, const Targets& targets, std::size_t vocab_size, float scale,
                            float* logits, std::span<float> losses) {
  team.for_parts(targets.ids.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      float* const row = logits + r * vocab_size;
      losses[r] = 0.0F;
      if (targets.counts[r] == 0) {
        std::fill_n(row, vocab_size, 0.0F);
        continue;
      }
      const auto target = static_cast<std::size_t>(targets.ids[r]);
      const RowLoss result = row_loss(team.kernels(), target, vocab_size, row);
      losses[r] = result.loss;
      const float factor = scale / result.sum;
      for (std::size_t i = 0; i < vocab_size; ++i) row[i] *= factor;
      row[target] -= scale;
    }
  });
}

}  // namespace recua::train
