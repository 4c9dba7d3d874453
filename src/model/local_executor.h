#pragma once
/// The Executor that runs the whole model in this process.
///
/// step() computes on the calling thread (with the device's threads) before its awaitable is done;
/// it never suspends.

#include <memory>

#include "compute/device.h"
#include "gguf/gguf_file.h"
#include "model/communicator.h"
#include "model/executor.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"

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

  /// step() for callers that are no coroutines.
  Result<StepResult> run(const StepBatch& batch);

  [[nodiscard]] const HyperParams& hyperparams() const { return hyperparams_; }

 private:
  LocalExecutor(HyperParams hyperparams, std::unique_ptr<Communicator> communicator,
                std::unique_ptr<SliceRunner> runner, ExecutorInfo info);

  HyperParams hyperparams_;
  std::unique_ptr<Communicator> communicator_;  // Outlives the runner.
  std::unique_ptr<SliceRunner> runner_;
  ExecutorInfo info_;
};

}  // namespace recua::model
