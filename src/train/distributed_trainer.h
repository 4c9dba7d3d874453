#pragma once
/// DistributedTrainer: steps of a Trainer whose gradients workers compute, each a part of the
/// examples. docs/training.md, "Over several machines".
///
/// The Trainer keeps parameters and moments as if it were alone: it replays each step from the
/// gradients of the workers' shards, to the bit. So checkpoints and validation are its own, and
/// when a worker is lost the others begin again at the last finished step with what the Trainer
/// has; when none is left it goes on alone. Threads: one calls.

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.h"
#include "train/trainer.h"
#include "train/worker_group.h"

namespace recua::train {

class DistributedTrainer {
 public:
  /// hyperparams: as shape_gguf() makes it. The group is connected; all outlive this.
  /// kInvalidArgument: a step has fewer examples than there are workers, more than
  /// kStepExamplesMax, or more than a message holds.
  static Result<DistributedTrainer> create(Trainer& trainer, WorkerGroup& group,
                                           const ModelShape& shape,
                                           std::vector<std::byte> hyperparams);

  /// As Trainer::step(). Besides: what a worker refuses (kResourceExhausted, say), and what happens
  /// again and again although no worker is lost.
  Result<StepReport> step();
  /// Workers that the last step was computed by; 0: none, the trainer itself.
  [[nodiscard]] std::uint32_t n_workers() const { return n_workers_; }

 private:
  DistributedTrainer(Trainer& trainer, WorkerGroup& group) : trainer_(&trainer), group_(&group) {}
  Result<void> open();
  Result<void> send();
  Result<StepReport> finish(const std::vector<RankSums>& sums);
  /// Whether the run goes on after an error.
  Result<void> recover(const Error& error);

  Trainer* trainer_;
  WorkerGroup* group_;
  TrainingRun run_;
  std::unique_ptr<Shards> shards_;
  std::uint32_t n_workers_ = 0;
  bool is_open_ = false;
  bool is_sent_ = false;  // The next step.
  bool alone_ = false;
  Trainer::Totals totals_;  // Of the step that is sent, as far as its examples tell.
  int n_failures_ = 0;      // Without a step or a loss in between.
};

}  // namespace recua::train
