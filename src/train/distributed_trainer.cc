#include "train/distributed_trainer.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "rpc/frame.h"

namespace recua::train {
namespace {

/// So often a session may fail with all workers still there.
constexpr int kFailuresMax = 3;

/// Whether another try may help: whoever is lost will not be asked again.
bool may_pass(ErrorCode code) {
  return code == ErrorCode::kUnavailable || code == ErrorCode::kTimeout ||
         code == ErrorCode::kCancelled || code == ErrorCode::kNotFound;
}

}  // namespace

Result<DistributedTrainer> DistributedTrainer::create(Trainer& trainer, WorkerGroup& group,
                                                      const ModelShape& shape,
                                                      std::vector<std::byte> hyperparams) {
  const std::uint32_t n_workers = group.n_left();
  const std::size_t n_examples = trainer.examples_per_step();
  const TrainerOptions& options = trainer.options();
  if (n_examples < n_workers) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a step has {} examples (--batch times --accumulate), too few for {} "
                             "workers: each needs at least one",
                             n_examples, n_workers)};
  }
  // The only one left would get them all.
  if (n_examples > kStepExamplesMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a step has {} examples (--batch times --accumulate), workers take at "
                             "most {}",
                             n_examples, kStepExamplesMax)};
  }
  if (step_bytes_max(n_examples, options.n_ctx) > rpc::kFrameBytesMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a step of {} examples with {} tokens is more than a message to a "
                             "worker holds: a smaller --accumulate or --batch is needed",
                             n_examples, options.n_ctx)};
  }
  DistributedTrainer out(trainer, group);
  out.run_.task.shape = shape;
  out.run_.task.options = {.batch = (options.batch + n_workers - 1) / n_workers,
                           .n_ctx = options.n_ctx,
                           .recompute = options.recompute,
                           .adam = options.adam};
  out.run_.hyperparams = std::move(hyperparams);
  return out;
}

Result<StepReport> DistributedTrainer::step() {
  while (!alone_) {
    Result<void> ready = is_open_ ? ok() : open();
    if (ready.ok() && !is_sent_) ready = send();
    if (!ready.ok()) {
      RECUA_RETURN_IF_ERROR(recover(ready.error()));
      continue;
    }
    const auto sums = group_->wait_step();
    if (!sums.ok()) {
      RECUA_RETURN_IF_ERROR(recover(sums.error()));
      continue;
    }
    return finish(*sums);
  }
  n_workers_ = 0;
  return trainer_->step();
}

Result<void> DistributedTrainer::open() {
  n_workers_ = group_->n_left();
  if (n_workers_ == 0) return Error{ErrorCode::kUnavailable, "no worker is left"};
  shards_ = std::make_unique<Shards>(trainer_->layout(), n_workers_);
  run_.shards = shards_.get();
  run_.params = trainer_->params();
  run_.m = trainer_->state().m;
  run_.v = trainer_->state().v;
  run_.gradients = trainer_->gradients();
  RECUA_RETURN_IF_ERROR(group_->open(run_));
  is_open_ = true;
  return ok();
}

Result<void> DistributedTrainer::send() {
  const std::size_t n_examples = trainer_->examples_per_step();
  totals_ = {};
  std::vector<RankStep> steps(n_workers_);
  for (std::uint32_t r = 0; r < n_workers_; ++r) {
    const sys::Partition own = examples_of(n_examples, r, n_workers_);
    for (std::size_t i = own.begin; i < own.end; ++i) {
      Example example = trainer_->next_example(i);
      totals_.n_tokens += example.counts.size();
      totals_.n_counted += static_cast<std::size_t>(std::ranges::count(example.counts, 1));
      steps[r].examples.push_back(std::move(example));
    }
  }
  for (RankStep& step : steps) {
    step.step = trainer_->run().step;
    step.lr = trainer_->options().schedule.at(step.step);
    step.scale = static_cast<float>(1.0 / static_cast<double>(totals_.n_counted));
  }
  RECUA_RETURN_IF_ERROR(group_->send_step(steps));
  is_sent_ = true;
  return ok();
}

Result<StepReport> DistributedTrainer::finish(const std::vector<RankSums>& sums) {
  totals_.loss = 0.0;
  for (const RankSums& rank : sums) totals_.loss += rank.loss;
  totals_.grad_norm = gradient_norm(sums);
  is_sent_ = false;
  n_failures_ = 0;
  Result<StepReport> report = trainer_->finish_step(totals_);
  // The workers go on while the caller validates or saves. What goes wrong now is seen when that
  // step is waited for.
  if (report.ok() && report->step < trainer_->options().schedule.n_steps) {
    if (const auto sent = send(); !sent.ok()) log_debug("{}", sent.error().message);
  }
  return report;
}

Result<void> DistributedTrainer::recover(const Error& error) {
  if (!may_pass(error.code)) return error;
  is_open_ = false;
  is_sent_ = false;
  const std::uint32_t n_before = n_workers_;
  const bool any_lost = group_->settle();
  const std::uint32_t n_left = group_->n_left();
  n_failures_ = any_lost ? 0 : n_failures_ + 1;
  if (n_failures_ >= kFailuresMax) return error;
  const std::uint64_t next = trainer_->run().step + 1;
  if (n_left == 0) {
    log_warning("{}; no worker is left: going on alone from step {}", error.message, next);
    alone_ = true;
  } else if (n_left < n_before) {
    log_warning("{}; going on with {} of {} workers from step {}", error.message, n_left, n_before,
                next);
  } else {
    log_warning("{}; beginning step {} again", error.message, next);
  }
  return ok();
}

}  // namespace recua::train
