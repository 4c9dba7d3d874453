#include "model/local_executor.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "model/local_weight_source.h"
#include "model/split_batch.h"

namespace recua::model {

Result<std::unique_ptr<LocalExecutor>> LocalExecutor::create(
    compute::Device& device, const std::shared_ptr<const gguf::GgufFile>& file,
    const SliceOptions& options, const LoadProgress& progress, std::uint32_t n_batch) {
  RECUA_ASSIGN_OR_RETURN(HyperParams hp, read_hyperparams(*file));
  const Slice whole = {.layer_begin = 0, .layer_end = hp.n_layers, .n_layers = hp.n_layers};
  auto communicator = std::make_unique<SingleRank>();
  const LocalWeightSource source(file);
  Result<std::unique_ptr<SliceRunner>> runner =
      SliceRunner::create(device, hp, source, whole, options, *communicator, progress);
  if (!runner.ok()) {
    Error error = std::move(runner).error();
    if (error.message.find(file->name()) != std::string::npos) return error;
    return std::move(error).within(file->name());
  }
  const SliceOptions& used = (*runner)->options();
  ExecutorInfo info = {.vocab_size = hp.vocab_size,
                       .n_ctx = used.n_ctx,
                       .n_pages = used.n_pages,
                       .page_tokens = used.page_tokens,
                       .n_batch = std::max(n_batch, used.n_ubatch),
                       .n_ubatch = used.n_ubatch,
                       .description = fmt::format("1 slice on {}", device.description())};
  return std::unique_ptr<LocalExecutor>(new LocalExecutor(
      std::move(hp), std::move(communicator), std::move(runner).value(), std::move(info)));
}

LocalExecutor::LocalExecutor(HyperParams hyperparams, std::unique_ptr<Communicator> communicator,
                             std::unique_ptr<SliceRunner> runner, ExecutorInfo info)
    : hyperparams_(std::move(hyperparams)),
      communicator_(std::move(communicator)),
      runner_(std::move(runner)),
      info_(std::move(info)) {}

boost::asio::awaitable<Result<StepResult>> LocalExecutor::step(StepBatch batch) {
  co_return run(batch);
}

Result<StepResult> LocalExecutor::run(const StepBatch& batch) {
  const SliceOptions& options = runner_->options();
  StepResult result;
  if (batch.n_rows() <= options.n_ubatch && batch.outputs.size() <= options.n_logit_rows) {
    RECUA_RETURN_IF_ERROR(runner_->run(batch, {}, {}, result));
    return result;
  }
  // A mistake in a later piece must not leave the earlier ones done.
  RECUA_RETURN_IF_ERROR(runner_->check(batch, info_.n_batch));
  for (const MicroBatch& piece :
       split_batch(batch, options.n_ubatch, options.n_logit_rows, options.page_tokens)) {
    StepResult piece_result;
    RECUA_RETURN_IF_ERROR(runner_->run(piece.batch, {}, {}, piece_result));
    merge_result(piece, std::move(piece_result), result);
  }
  return result;
}

}  // namespace recua::model
