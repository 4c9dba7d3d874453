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
  Totals totals;
  std::size_t n_taken = 0;
  for (Batch& pass : passes_) {
    pass.clear();
    for (std::size_t i = 0; i < options_.batch; ++i) pass.add(next_example(n_taken++));
    totals.n_counted += pass.n_counted();
    totals.n_tokens += pass.n_rows();
  }
  RECUA_CHECK(totals.n_counted > 0);  // An example has at least one token that counts.
  std::ranges::fill(gradients_.span(), 0.0F);
  const auto scale = static_cast<float>(1.0 / static_cast<double>(totals.n_counted));
  for (const Batch& pass : passes_) {
    totals.loss += network_.loss_and_gradient(pass, params_.span(), scale, gradients_.span());
  }
  totals.grad_norm = std::sqrt(sum_of_squares(*team_, gradients_.size(), gradients_.data()));
  return finish_step(totals);
}

Result<StepReport> Trainer::finish_step(const Totals& totals) {
  const StepReport report{.step = run_.step + 1,
                          .loss = totals.loss / static_cast<double>(totals.n_counted),
                          .lr = options_.schedule.at(run_.step),
                          .grad_norm = totals.grad_norm,
                          .n_tokens = totals.n_tokens};
  if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("step {}: the loss is {} and the gradient's norm {}, which must be "
                             "numbers: training has diverged; a smaller --lr or a longer --warmup "
                             "may help",
                             report.step, report.loss, report.grad_norm)};
  }
  adam_step(*team_, layout(), options_.adam, report.lr, run_.step,
            clip_factor(options_.adam, report.grad_norm), gradients_.span(), state());
  run_.position += examples_per_step();
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
