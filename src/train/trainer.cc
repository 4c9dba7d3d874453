#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/check.h"
#include "train/row_ops.h"

namespace recua::train {

Result<Trainer> Trainer::create(Team& team, const Dataset& dataset, const ModelShape& shape,
                                const TrainerOptions& options, const LoraModel* lora) {
  RECUA_CHECK(options.batch > 0 && options.accumulate > 0 && options.n_ctx > 0);
  const NetworkLimits limits{.rows_max = options.batch * options.n_ctx,
                             .sequence_max = options.n_ctx,
                             .recompute = options.recompute};
  RECUA_ASSIGN_OR_RETURN(Network network, Network::create(team, shape, limits, lora));
  Trainer trainer(team, dataset, options, std::move(network));
  const std::size_t n = trainer.layout().n_params();
  for (FloatBuffer* buffer : {&trainer.params_, &trainer.m_, &trainer.v_, &trainer.gradients_}) {
    auto memory = FloatBuffer::allocate(n);
    if (!memory.ok()) {
      return std::move(memory).error().within(
          fmt::format("{} parameters need 16 bytes each to train", n));
    }
    *buffer = std::move(memory).value();
  }
  for (Batch& pass : trainer.passes_) pass.reserve(options.batch, options.n_ctx);
  return trainer;
}

Result<StepReport> Trainer::step() {
  // All of the step's examples first: each token weighs the same, in whatever pass it comes.
  std::size_t n_counted = 0;
  StepReport report{.step = run_.step + 1, .lr = options_.schedule.at(run_.step)};
  std::uint64_t position = run_.position;
  for (Batch& pass : passes_) {
    pass.clear();
    for (std::size_t i = 0; i < options_.batch; ++i) {
      pass.add(dataset_->example(shuffle_.at(position++)));
    }
    n_counted += pass.n_counted();
    report.n_tokens += pass.n_rows();
  }
  RECUA_CHECK(n_counted > 0);  // An example has at least one token that counts.
  std::ranges::fill(gradients_.span(), 0.0F);
  double sum = 0.0;
  const auto scale = static_cast<float>(1.0 / static_cast<double>(n_counted));
  for (const Batch& pass : passes_) {
    sum += network_.loss_and_gradient(pass, params_.span(), scale, gradients_.span());
  }
  report.loss = sum / static_cast<double>(n_counted);
  report.grad_norm = std::sqrt(sum_of_squares(*team_, gradients_.size(), gradients_.data()));
  if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("step {}: the loss is {} and the gradient's norm {}, which must be "
                             "numbers: training has diverged; a smaller --lr or a longer --warmup "
                             "may help",
                             report.step, report.loss, report.grad_norm)};
  }
  adam_step(*team_, layout(), options_.adam, report.lr, run_.step,
            clip_factor(options_.adam, report.grad_norm), gradients_.span(), state());
  run_.position = position;
  ++run_.step;
  return report;
}

double Trainer::validate() {
  const std::size_t n = std::min(dataset_->n_validation(), options_.validation_max);
  RECUA_CHECK(n > 0);
  double sum = 0.0;
  std::size_t n_counted = 0;
  Batch& batch = passes_.front();
  for (std::size_t begin = 0; begin < n; begin += options_.batch) {
    batch.clear();
    for (std::size_t i = begin; i < std::min(n, begin + options_.batch); ++i) {
      batch.add(dataset_->example(dataset_->n_train() + i));
    }
    sum += network_.loss(batch, params_.span());
    n_counted += batch.n_counted();
  }
  return sum / static_cast<double>(n_counted);
}

}  // namespace recua::train
