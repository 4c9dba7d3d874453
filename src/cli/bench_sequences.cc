#include "cli/bench_sequences.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "cli/run_loop.h"
#include "cluster/run_all.h"

namespace recua::cli {

BenchSequences::BenchSequences(Backend& backend, std::uint32_t n_sequences, Steps steps)
    : backend_(&backend), info_(backend.executor->info()), steps_(steps) {
  for (std::uint32_t i = 0; i < n_sequences; ++i) sequences_.push_back({.id = i + 1});
}

Result<void> BenchSequences::prefill(std::uint32_t n) {
  for (Sequence& sequence : sequences_) {
    for (std::uint32_t n_left = n; n_left > 0;) {
      const std::uint32_t n_now = std::min(n_left, info_.n_batch);
      model::StepBatch batch;
      extend(batch, sequence, n_now);
      RECUA_RETURN_IF_ERROR(run(std::move(batch)));
      n_left -= n_now;
    }
  }
  return ok();
}

Result<void> BenchSequences::generate(std::uint32_t n) {
  if (steps_ == Steps::kApart) {
    std::vector<boost::asio::awaitable<Result<void>>> tasks;
    for (Sequence& sequence : sequences_) tasks.push_back(generate_apart(sequence, n));
    return run_on(backend_->loop, cluster::run_all(backend_->env.executor, std::move(tasks)));
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    model::StepBatch batch;
    for (Sequence& sequence : sequences_) extend(batch, sequence, 1);
    RECUA_RETURN_IF_ERROR(run(std::move(batch)));
  }
  return ok();
}

boost::asio::awaitable<Result<void>> BenchSequences::generate_apart(Sequence& sequence,
                                                                    std::uint32_t n) {
  for (std::uint32_t i = 0; i < n; ++i) {
    model::StepBatch batch;
    extend(batch, sequence, 1);
    auto result = co_await backend_->executor->step(std::move(batch));
    if (!result.ok()) co_return std::move(result).error();
  }
  co_return ok();
}

void BenchSequences::truncate(std::uint32_t n_tokens) {
  for (Sequence& sequence : sequences_) {
    if (n_tokens == sequence.n_tokens) continue;
    sequence.ops.push_back({.kind = n_tokens == 0 ? model::SequenceOp::Kind::kFree
                                                  : model::SequenceOp::Kind::kTruncate,
                            .seq = sequence.id,
                            .n_tokens = n_tokens});
    sequence.n_tokens = n_tokens;
  }
}

void BenchSequences::extend(model::StepBatch& batch, Sequence& sequence, std::uint32_t n) {
  std::ranges::move(std::exchange(sequence.ops, {}), std::back_inserter(batch.ops));
  model::SequencePart part{.seq = sequence.id, .position = sequence.n_tokens};
  for (std::uint32_t i = 0; i < n; ++i)
    part.tokens.push_back(static_cast<model::TokenId>(rng_.below(info_.vocab_size)));
  // Each sequence has its own range of the cache's pages.
  const auto n_pages = [&] {
    return (sequence.n_tokens + info_.page_tokens - 1) / info_.page_tokens;
  };
  const auto n_pages_each = info_.n_pages / static_cast<std::uint32_t>(sequences_.size());
  const std::uint32_t first_page = n_pages();
  sequence.n_tokens += n;
  for (std::uint32_t page = first_page; page < n_pages(); ++page)
    part.new_pages.push_back((sequence.id - 1) * n_pages_each + page);
  std::uint32_t n_rows = n;
  for (const model::SequencePart& before : batch.parts)
    n_rows += static_cast<std::uint32_t>(before.tokens.size());
  batch.parts.push_back(std::move(part));
  sampling::SamplingParams greedy;
  greedy.temperature = 0.0F;
  batch.outputs.push_back({.row = n_rows - 1, .sampling = greedy});
}

Result<void> BenchSequences::run(model::StepBatch batch) {
  auto result = run_on(backend_->loop, backend_->executor->step(std::move(batch)));
  if (!result.ok()) return std::move(result).error();
  return ok();
}

}  // namespace recua::cli
