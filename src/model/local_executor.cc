#include "model/local_executor.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "base/check.h"
#include "model/local_weight_source.h"

namespace recua::model {

namespace asio = boost::asio;

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

/// A step's place among those that have begun, kept until it ends in whatever way. The line
/// outlives the executor: a loop may destroy a suspended step later than that.
class LocalExecutor::Turn {
 public:
  explicit Turn(const std::shared_ptr<Line>& line)
      : line_(line), place_(line->insert(line->end(), 0)) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() { line_->erase(place_); }

  [[nodiscard]] bool has_come() const { return place_ == line_->begin(); }

 private:
  std::shared_ptr<Line> line_;
  Line::iterator place_;
};

asio::awaitable<Result<StepResult>> LocalExecutor::step(StepBatch batch) {
  const asio::any_io_executor loop = co_await asio::this_coro::executor;
  const Turn turn(line_);
  // Each time through the loop the step in front does a micro-batch: this does not spin.
  while (!turn.has_come()) co_await asio::post(loop, asio::use_awaitable);
  if (fits_at_once(batch)) co_return run_at_once(batch);
  Result<std::vector<MicroBatch>> pieces = cut(batch);
  if (!pieces.ok()) co_return std::move(pieces).error();
  StepResult result;
  for (std::size_t i = 0; i < pieces->size(); ++i) {
    if (i > 0) co_await asio::post(loop, asio::use_awaitable);
    const Result<void> done = run_piece((*pieces)[i], result);
    if (!done.ok()) co_return done.error();
  }
  co_return result;
}

Result<StepResult> LocalExecutor::run(const StepBatch& batch) {
  RECUA_CHECK(line_->empty());
  if (fits_at_once(batch)) return run_at_once(batch);
  RECUA_ASSIGN_OR_RETURN(const std::vector<MicroBatch> pieces, cut(batch));
  StepResult result;
  for (const MicroBatch& piece : pieces) RECUA_RETURN_IF_ERROR(run_piece(piece, result));
  return result;
}

bool LocalExecutor::fits_at_once(const StepBatch& batch) const {
  const SliceOptions& options = runner_->options();
  return batch.n_rows() <= options.n_ubatch && batch.outputs.size() <= options.n_logit_rows;
}

Result<StepResult> LocalExecutor::run_at_once(const StepBatch& batch) {
  StepResult result;
  RECUA_RETURN_IF_ERROR(runner_->run(batch, {}, {}, result));
  return result;
}

Result<std::vector<MicroBatch>> LocalExecutor::cut(const StepBatch& batch) {
  // A mistake in a later piece must not leave the earlier ones done.
  RECUA_RETURN_IF_ERROR(runner_->check(batch, info_.n_batch));
  const SliceOptions& options = runner_->options();
  return split_batch(batch, options.n_ubatch, options.n_logit_rows, options.page_tokens);
}

Result<void> LocalExecutor::run_piece(const MicroBatch& piece, StepResult& into) {
  StepResult result;
  RECUA_RETURN_IF_ERROR(runner_->run(piece.batch, {}, {}, result));
  merge_result(piece, std::move(result), into);
  return ok();
}

}  // namespace recua::model
