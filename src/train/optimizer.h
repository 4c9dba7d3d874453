#pragma once
/// AdamW with a schedule and a bound on the gradient.
///
///   m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
///   p <- p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)
/// Decay is for matrices only. Source: Loshchilov & Hutter 2019, "Decoupled weight decay".

#include <cstddef>
#include <cstdint>
#include <span>

#include "train/parameters.h"
#include "train/team.h"

namespace recua::train {

/// Linear warm-up to lr, then half a cosine down to lr_final at n_steps.
struct Schedule {
  double lr = 1e-3;
  double lr_final = 1e-4;
  std::uint64_t n_warmup = 0;
  std::uint64_t n_steps = 0;

  /// Of step `step`, from 0; lr_final from n_steps on.
  [[nodiscard]] double at(std::uint64_t step) const;
};

struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // Gradients longer than this are scaled to it; 0: never.
};

struct AdamState {
  std::span<float> params;
  std::span<float> m;
  std::span<float> v;
};

/// The numbers of one step, for arrays that are updated piece by piece.
class AdamStep {
 public:
  struct Arrays {  // Pieces of n values that belong together.
    const float* gradients = nullptr;
    float* params = nullptr;
    float* m = nullptr;
    float* v = nullptr;
  };

  /// step counts from 0; gradients are scaled by `factor` as they are read.
  AdamStep(const AdamOptions& options, double lr, std::uint64_t step, float factor);
  /// The same bits for any division into pieces.
  void apply(Team& team, bool is_matrix, std::size_t n, const Arrays& at) const;

 private:
  kernels::AdamArgs args_;
  float keep_matrix_;  // 1 less the decay.
};

/// One step. step counts from 0; gradients are scaled by `factor` as they are read (see
/// clip_factor()).
void adam_step(Team& team, const ParameterLayout& layout, const AdamOptions& options, double lr,
               std::uint64_t step, float factor, std::span<const float> gradients,
               const AdamState& state);

/// min(1, clip_norm / norm).
float clip_factor(const AdamOptions& options, double norm);

}  // namespace recua::train
