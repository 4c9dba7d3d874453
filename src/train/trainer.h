#pragma once
/// One training run: steps over the examples of a dataset.
///
/// A step is a function of the parameters, the moments, the step's number, the position in the data
/// and the options: so a run that goes on from a checkpoint gives the bits of one that was never
/// interrupted, for any number of threads.
/// Threads: one thread calls; it computes with the Team's.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "train/batch.h"
#include "train/checkpoint.h"
#include "train/dataset.h"
#include "train/network.h"
#include "train/optimizer.h"

namespace recua::train {

struct TrainerOptions {
  Schedule schedule;
  AdamOptions adam;
  std::size_t batch = 8;            // Examples of a pass.
  std::size_t accumulate = 1;       // Passes of a step.
  std::size_t n_ctx = 256;          // Tokens of an example at most.
  std::uint64_t seed = 1;           // Of the order of the examples.
  bool recompute = false;           // Of activations: NetworkLimits.
  std::size_t validation_max = 64;  // Examples that validate() looks at, at most.
};

struct StepReport {
  std::uint64_t step = 0;  // Its number, from 1.
  double loss = 0.0;       // Mean over the step's counted tokens.
  double lr = 0.0;
  double grad_norm = 0.0;    // Before clipping.
  std::size_t n_tokens = 0;  // Rows that were computed.
};

class Trainer {
 public:
  /// team, dataset and lora outlive the trainer; with lora its adapter is trained
  /// (train/network.h). Parameters are zero until params() is filled. kResourceExhausted: no
  /// memory; says for what.
  static Result<Trainer> create(Team& team, const Dataset& dataset, const ModelShape& shape,
                                const TrainerOptions& options, const LoraModel* lora = nullptr);

  /// One optimizer step. kCorrupt: the loss or the gradient is not a number; names the step, and
  /// parameters and moments are those before it.
  Result<StepReport> step();

  // The same in parts, for gradients that others compute (train/distributed_trainer.h).
  /// Example i of the next step, which has examples_per_step().
  [[nodiscard]] Example next_example(std::size_t i) const {
    return dataset_->example(shuffle_.at(run_.position + i));
  }
  /// The next step's gradient goes here,
  [[nodiscard]] std::span<float> gradients() const { return gradients_.span(); }
  /// and these numbers with it into the step's second half; as step().
  struct Totals {
    std::size_t n_counted = 0;  // Tokens that enter the loss; above 0.
    std::size_t n_tokens = 0;
    double loss = 0.0;  // Their sum.
    double grad_norm = 0.0;
  };
  Result<StepReport> finish_step(const Totals& totals);

  /// Mean loss over the validation examples, the same ones each time. There must be some.
  double validate();

  [[nodiscard]] const ParameterLayout& layout() const { return network_.layout(); }
  [[nodiscard]] std::span<float> params() const { return params_.span(); }
  /// For checkpoints, with run().
  [[nodiscard]] AdamState state() const { return {params_.span(), m_.span(), v_.span()}; }
  [[nodiscard]] RunPosition& run() { return run_; }
  [[nodiscard]] const TrainerOptions& options() const { return options_; }
  [[nodiscard]] Team& team() const { return *team_; }
  /// Examples of a step.
  [[nodiscard]] std::size_t examples_per_step() const {
    return options_.batch * options_.accumulate;
  }

 private:
  Trainer(Team& team, const Dataset& dataset, const TrainerOptions& options, Network network)
      : team_(&team),
        dataset_(&dataset),
        options_(options),
        shuffle_(options.seed, dataset.n_train()),
        network_(std::move(network)),
        passes_(options.accumulate) {}

  Team* team_;
  const Dataset* dataset_;
  TrainerOptions options_;
  Shuffle shuffle_;
  Network network_;
  FloatBuffer params_, m_, v_, gradients_;
  std::vector<Batch> passes_;
  RunPosition run_;
};

}  // namespace recua::train
