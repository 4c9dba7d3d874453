#pragma once
/// Scheduler: which tokens of which requests make up the next step. Pure bookkeeping: no loop, no
/// executor, no callbacks.
///
/// A request's sequence is its prompt and what was generated so far; of that, the first n_cached
/// tokens are in the executor's caches and the rest is pending. Prefill, decode and replay are one
/// thing: append pending tokens, and sample when none is left. Each step takes
///   1. the sequences with one pending token (they decode), oldest first,
///   2. then chunks of longer pending runs, oldest first,
///   3. then waiting requests, while pages for all their tokens are free,
/// up to n_batch rows. A request that grows when no page is free pushes the youngest one out: that
/// one loses its pages and waits in front, to be replayed later. The oldest always gets on, so all
/// end.
///
/// Row invariance (docs/architecture.md) makes all of that invisible in the answers.
/// Threads: the engine's loop only.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/page_pool.h"
#include "engine/request.h"
#include "model/executor.h"
#include "net/clock.h"

namespace recua::engine {

/// A request on its way, as the engine and its scheduler see it.
struct Job {
  RequestId id = 0;
  Request request;
  RequestCallbacks callbacks;

  std::vector<TokenId> tokens;  // The prompt, then what was generated.
  std::size_t n_cached = 0;     // So many of them are in the executor's caches.
  std::size_t n_scored = 0;     // Prompt tokens reported, the first one included.
  model::SequenceId seq = 0;
  std::vector<model::PageId> pages;
  bool finished = false;  // on_finish was called; only the pages are left to give back.

  net::TimePoint started{};      // First step that held it.
  net::TimePoint first_token{};  // Or the last scored prompt token.
  net::TimePoint last_token{};   // That was reported: an end token is none.
  bool was_started = false;

  [[nodiscard]] std::size_t n_prompt() const { return request.prompt.size(); }
  [[nodiscard]] std::size_t n_generated() const { return tokens.size() - n_prompt(); }
  [[nodiscard]] bool generates() const { return !request.n_predict || *request.n_predict > 0; }
  /// Tokens that the caches have to hold before the next answer. Nothing follows the last prompt
  /// token of a request that only scores, so that one stays out.
  [[nodiscard]] std::size_t n_needed() const {
    return generates() ? tokens.size() : n_prompt() - 1;
  }
  [[nodiscard]] std::size_t n_pending() const { return n_needed() - n_cached; }
};

/// One step, and whose rows it holds.
struct PlannedStep {
  struct Share {
    std::shared_ptr<Job> job;
    std::size_t n_tokens = 0;
    std::size_t n_outputs = 0;
  };
  model::StepBatch batch;
  std::vector<Share> shares;  // In the order of batch.parts.
};

class Scheduler {
 public:
  Scheduler(const model::ExecutorInfo& info, std::size_t n_running_max);

  /// Its tokens fit into the cache (max_tokens()), and it has something pending.
  void add(std::shared_ptr<Job> job) { waiting_.push_back(std::move(job)); }
  [[nodiscard]] bool idle() const { return waiting_.empty() && running_.empty(); }
  /// The longest sequence that the caches can hold.
  [[nodiscard]] std::size_t max_tokens() const;
  [[nodiscard]] std::size_t n_pages_free() const { return pages_.n_free(); }
  /// Pages that finished requests still hold; sweep() frees them.
  [[nodiscard]] std::size_t n_pages_finished() const;

  /// The next step. It has shares as long as an unfinished request is here: every request fits into
  /// the cache alone.
  PlannedStep plan();

  /// The step was done: its tokens are in the caches.
  void commit(const PlannedStep& step);
  /// The step changed nothing: what it would have freed is still to be freed.
  void roll_back(const PlannedStep& step);
  /// Nobody knows what the step did. Returns the sequences that may have to be freed, one by one
  /// and whatever the answer is; their requests have to be finished by the caller.
  std::vector<model::SequenceId> abandon(const PlannedStep& step);

  /// Forgets finished requests and takes their pages back.
  void sweep();
  /// The executor has lost all caches: every running request goes back in front of the waiting
  /// ones.
  void caches_lost();

  [[nodiscard]] std::vector<std::shared_ptr<Job>> jobs() const;

 private:
  [[nodiscard]] std::size_t pages_for(std::size_t n_tokens) const;
  std::vector<std::size_t> divide_rows(std::size_t& rows_left) const;
  bool grow(std::size_t index, std::size_t n_tokens, std::vector<model::PageId>& new_pages);
  void admit(PlannedStep& step, std::size_t rows_left);
  void release(Job& job);
  static void append(PlannedStep& step, const std::shared_ptr<Job>& job, std::size_t n_tokens,
                     std::vector<model::PageId> new_pages);

  model::ExecutorInfo info_;
  std::size_t n_running_max_;
  PagePool pages_;
  model::SequenceId next_seq_ = 1;
  std::vector<model::SequenceOp> ops_;         // For the next step.
  std::vector<std::shared_ptr<Job>> running_;  // Oldest first.
  std::deque<std::shared_ptr<Job>> waiting_;
};

}  // namespace recua::engine
