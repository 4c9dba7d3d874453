#pragma once
/// The Executor that runs the whole model in this process.
///
/// step() computes on the calling thread (with the device's threads), a micro-batch at a time.
/// Between two of them it goes once through the loop, so that others (Ctrl-C, heartbeats) get their
/// turn; a step of one micro-batch does not suspend. Steps that begin meanwhile wait for its end.

#include <list>
#include <memory>
#include <vector>

#include "compute/device.h"
#include "gguf/gguf_file.h"
#include "model/communicator.h"
#include "model/executor.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"
#include "model/split_batch.h"

namespace recua::model {

class LocalExecutor final : public Executor {
 public:
  /// Reads, checks and loads the model. device outlives the executor, which keeps the file.
  /// n_batch: most rows of a step; at least n_ubatch is used.
  /// Errors as read_hyperparams() and SliceRunner::create(); they name the file.
  static Result<std::unique_ptr<LocalExecutor>> create(
      compute::Device& device, const std::shared_ptr<const gguf::GgufFile>& file,
      const SliceOptions& options, const LoadProgress& progress = {}, std::uint32_t n_batch = 2048);

  [[nodiscard]] const ExecutorInfo& info() const override { return info_; }
  boost::asio::awaitable<Result<StepResult>> step(StepBatch batch) override;

  /// step() for callers that are no coroutines. Not while a step is under way.
  Result<StepResult> run(const StepBatch& batch);

  [[nodiscard]] const HyperParams& hyperparams() const { return hyperparams_; }

 private:
  LocalExecutor(HyperParams hyperparams, std::unique_ptr<Communicator> communicator,
                std::unique_ptr<SliceRunner> runner, ExecutorInfo info);

  class Turn;
  using Line = std::list<char>;  // One element for each step under way; only places count.

  [[nodiscard]] bool fits_at_once(const StepBatch& batch) const;
  Result<StepResult> run_at_once(const StepBatch& batch);
  Result<std::vector<MicroBatch>> cut(const StepBatch& batch);
  Result<void> run_piece(const MicroBatch& piece, StepResult& into);

  HyperParams hyperparams_;
  std::unique_ptr<Communicator> communicator_;  // Outlives the runner.
  std::unique_ptr<SliceRunner> runner_;
  ExecutorInfo info_;
  std::shared_ptr<Line> line_ = std::make_shared<Line>();
};

}  // namespace recua::model
