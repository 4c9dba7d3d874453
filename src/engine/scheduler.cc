#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace recua::engine {

using model::OutputRequest;
using model::SequenceOp;

Scheduler::Scheduler(const model::ExecutorInfo& info, std::size_t n_running_max)
    : info_(info), n_running_max_(n_running_max), pages_(info.n_pages) {
  RECUA_CHECK(info.page_tokens > 0 && info.n_batch > 0 && n_running_max > 0);
}

std::size_t Scheduler::pages_for(std::size_t n_tokens) const {
  return (n_tokens + info_.page_tokens - 1) / info_.page_tokens;
}

std::size_t Scheduler::max_tokens() const {
  return std::min<std::size_t>(info_.n_ctx, std::size_t{info_.n_pages} * info_.page_tokens);
}

void Scheduler::release(Job& job) {
  // A sequence exists for the executor from its first part on.
  if (job.n_cached > 0) ops_.push_back({.kind = SequenceOp::Kind::kFree, .seq = job.seq});
  job.n_cached = 0;
  pages_.give_back(job.pages);
}

void Scheduler::sweep() {
  for (const std::shared_ptr<Job>& job : running_)
    if (job->finished) release(*job);
  const auto is_finished = [](const std::shared_ptr<Job>& job) { return job->finished; };
  std::erase_if(running_, is_finished);
  std::erase_if(waiting_, is_finished);
}

std::size_t Scheduler::n_pages_finished() const {
  std::size_t n = 0;
  for (const std::shared_ptr<Job>& job : running_)
    if (job->finished) n += job->pages.size();
  return n;
}

void Scheduler::caches_lost() {
  ops_.clear();
  for (const std::shared_ptr<Job>& job : running_) {
    job->n_cached = 0;
    job->pages.clear();
  }
  pages_.reset();
  waiting_.insert(waiting_.begin(), running_.begin(), running_.end());
  running_.clear();
}

std::vector<std::shared_ptr<Job>> Scheduler::jobs() const {
  std::vector<std::shared_ptr<Job>> all = running_;
  all.insert(all.end(), waiting_.begin(), waiting_.end());
  return all;
}

PlannedStep Scheduler::plan() {
  sweep();
  PlannedStep step;
  std::size_t rows_left = info_.n_batch;
  const std::vector<std::size_t> rows = divide_rows(rows_left);
  // Oldest first, so that whoever is pushed out has no part in the step yet.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    if (rows[i] == 0) continue;
    std::vector<model::PageId> new_pages;
    const std::shared_ptr<Job> job = running_[i];
    if (grow(i, rows[i], new_pages)) append(step, job, rows[i], std::move(new_pages));
  }
  admit(step, rows_left);
  step.batch.ops = std::move(ops_);
  ops_.clear();
  return step;
}

/// How many rows each running request gets.
std::vector<std::size_t> Scheduler::divide_rows(std::size_t& rows_left) const {
  std::vector<std::size_t> rows(running_.size(), 0);
  const auto give = [&](bool decoding) {
    for (std::size_t i = 0; i < running_.size() && rows_left > 0; ++i) {
      const std::size_t n_pending = running_[i]->n_pending();
      if ((n_pending == 1) != decoding) continue;
      rows[i] = std::min(n_pending, rows_left);
      rows_left -= rows[i];
    }
  };
  give(true);
  give(false);
  return rows;
}

/// Gets the pages that n_tokens more tokens of running_[index] need, from younger requests if it
/// has to. False: it was itself the youngest, and waits again.
bool Scheduler::grow(std::size_t index, std::size_t n_tokens,
                     std::vector<model::PageId>& new_pages) {
  const std::shared_ptr<Job> job = running_[index];
  const std::size_t n_missing = pages_for(job->n_cached + n_tokens) - job->pages.size();
  while (!pages_.take(n_missing, new_pages)) {
    RECUA_CHECK(running_.size() > 1);  // Alone, any request fits: the engine sees to it.
    const std::shared_ptr<Job> youngest = std::move(running_.back());
    running_.pop_back();
    release(*youngest);
    waiting_.push_front(youngest);
    if (youngest == job) return false;
  }
  job->pages.insert(job->pages.end(), new_pages.begin(), new_pages.end());
  return true;
}

void Scheduler::admit(PlannedStep& step, std::size_t rows_left) {
  while (rows_left > 0 && !waiting_.empty() && running_.size() < n_running_max_) {
    const std::shared_ptr<Job> job = waiting_.front();
    // One page of room for each one that runs already, so that the newcomer is not pushed out as
    // soon as the others grow. Alone it may use everything.
    const std::size_t n_total = pages_for(job->n_needed());
    if (n_total + running_.size() > pages_.n_free()) return;
    waiting_.pop_front();
    job->seq = next_seq_++;
    running_.push_back(job);
    const std::size_t n_tokens = std::min(job->n_pending(), rows_left);
    rows_left -= n_tokens;
    std::vector<model::PageId> new_pages;
    RECUA_CHECK(pages_.take(pages_for(n_tokens), new_pages));
    job->pages = new_pages;
    append(step, job, n_tokens, std::move(new_pages));
  }
}

/// The rows, and what is asked of them: scores of prompt tokens that were not reported yet, and the
/// next token behind the last one.
void Scheduler::append(PlannedStep& step, const std::shared_ptr<Job>& job, std::size_t n_tokens,
                       std::vector<model::PageId> new_pages) {
  const auto first_row = static_cast<std::uint32_t>(step.batch.n_rows());
  const std::size_t begin = job->n_cached;
  const std::size_t end = begin + n_tokens;
  std::size_t n_outputs = 0;
  if (job->request.prompt_n_top) {
    // Row p gives the probability of token p + 1.
    const std::size_t last = std::min(end, job->n_prompt() - 1);
    for (std::size_t p = std::max(begin, job->n_scored - 1); p < last; ++p, ++n_outputs) {
      step.batch.outputs.push_back({.row = first_row + static_cast<std::uint32_t>(p - begin),
                                    .kind = OutputRequest::Kind::kScore,
                                    .target = job->tokens[p + 1],
                                    .n_top = *job->request.prompt_n_top});
    }
  }
  if (job->generates() && end == job->tokens.size()) {
    step.batch.outputs.push_back({.row = first_row + static_cast<std::uint32_t>(n_tokens - 1),
                                  .kind = OutputRequest::Kind::kSample,
                                  .n_top = job->request.n_top,
                                  .sampling = job->request.sampling});
    ++n_outputs;
  }
  const auto from = job->tokens.begin() + static_cast<std::ptrdiff_t>(begin);
  step.batch.parts.push_back({.seq = job->seq,
                              .position = static_cast<std::uint32_t>(begin),
                              .tokens = {from, from + static_cast<std::ptrdiff_t>(n_tokens)},
                              .new_pages = std::move(new_pages)});
  step.shares.push_back({.job = job, .n_tokens = n_tokens, .n_outputs = n_outputs});
}

void Scheduler::commit(const PlannedStep& step) {
  for (const PlannedStep::Share& share : step.shares) share.job->n_cached += share.n_tokens;
}

void Scheduler::roll_back(const PlannedStep& step) {
  ops_.insert(ops_.begin(), step.batch.ops.begin(), step.batch.ops.end());
  for (std::size_t i = 0; i < step.shares.size(); ++i) {
    // Pages of this step are the last ones of their request.
    std::vector<model::PageId> unused = step.batch.parts[i].new_pages;
    std::vector<model::PageId>& pages = step.shares[i].job->pages;
    pages.resize(pages.size() - unused.size());
    pages_.give_back(unused);
  }
}

std::vector<model::SequenceId> Scheduler::abandon(const PlannedStep& step) {
  std::vector<model::SequenceId> doubtful;
  for (const SequenceOp& op : step.batch.ops) doubtful.push_back(op.seq);
  for (const PlannedStep::Share& share : step.shares) {
    doubtful.push_back(share.job->seq);
    share.job->n_cached = 0;  // So that sweep() does not free it once more.
  }
  return doubtful;
}

}  // namespace recua::engine
