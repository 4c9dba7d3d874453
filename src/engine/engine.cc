// One coroutine drives the executor while there are requests, and ends when there are none;
// submit() starts it again. Between two steps it goes once through the loop, so that others (new
// requests, signals) get their turn also when the executor computes on the loop's own thread.

#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <unordered_map>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "engine/scheduler.h"
#include "model/batch_tables.h"
#include "sampling/sampler.h"

namespace recua::engine {

namespace asio = boost::asio;

namespace {

/// An executor that keeps losing its caches without ever doing a step is no use to wait for.
constexpr int kCachesLostInARowMax = 100;

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// What a step gave back, checked against what it was asked for: it may come from a peer.
Result<void> check_result(const PlannedStep& step, const model::StepResult& result,
                          std::uint32_t vocab_size) {
  const auto& asked = step.batch.outputs;
  if (result.outputs.size() != asked.size()) {
    return Error{ErrorCode::kProtocol, fmt::format("the step gave {} outputs, {} were asked for",
                                                   result.outputs.size(), asked.size())};
  }
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const model::StepOutput& output = result.outputs[i];
    const bool scored = asked[i].kind == model::OutputRequest::Kind::kScore;
    const bool right_id = output.id >= 0 && static_cast<std::uint32_t>(output.id) < vocab_size &&
                          (!scored || output.id == asked[i].target);
    if (output.row != asked[i].row || !right_id) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("the step gave token {} for row {}, which row {} of {} tokens did "
                               "not ask for",
                               output.id, output.row, asked[i].row, vocab_size)};
    }
  }
  return ok();
}

}  // namespace

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

struct Engine::State : std::enable_shared_from_this<Engine::State> {
  State(asio::any_io_executor loop_in, const net::Clock& clock_in, model::Executor& executor_in,
        const EngineOptions& options)
      : loop(std::move(loop_in)),
        clock(&clock_in),
        executor(&executor_in),
        scheduler(executor_in.info(), options.n_running_max) {}

  void start();
  asio::awaitable<void> run();
  asio::awaitable<void> do_step();
  asio::awaitable<void> free_doubtful(std::vector<model::SequenceId> doubtful);
  void deliver(const PlannedStep& step, model::StepResult& result);
  void deliver_output(Job& job, const model::OutputRequest& asked, model::StepOutput& output,
                      net::TimePoint now);
  void caches_lost(const Error& error);
  void fail(const PlannedStep& step, const Error& error);
  void fail_all(const Error& error);
  void finish(Job& job, FinishReason reason, std::optional<Error> error = std::nullopt);

  asio::any_io_executor loop;
  const net::Clock* clock;
  model::Executor* executor;
  Scheduler scheduler;
  std::unordered_map<RequestId, std::shared_ptr<Job>> jobs;  // The unfinished ones.
  RequestId next_id = 1;
  bool is_running = false;
  bool is_closed = false;  // The Engine is gone: no callbacks, no steps.
  int n_caches_lost_in_a_row = 0;
};

void Engine::State::start() {
  if (is_running) return;
  is_running = true;
  auto self = shared_from_this();
  asio::co_spawn(loop, run(), [self](const std::exception_ptr& failure) {
    if (!failure) return;
    self->is_running = false;
    if (self->is_closed) return;
    // Not ours: bad_alloc, or a third party's. Requests must not wait for ever because of it.
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      const std::string message = fmt::format("the engine's step failed: {}", error.what());
      self->fail_all({ErrorCode::kResourceExhausted, message});
    }
  });
}

asio::awaitable<void> Engine::State::run() {
  const auto self = shared_from_this();
  while (!is_closed && !jobs.empty()) {
    co_await asio::post(loop, asio::use_awaitable);
    if (is_closed) break;
    co_await do_step();
  }
  scheduler.sweep();  // An idle engine holds no finished requests.
  is_running = false;
}

asio::awaitable<void> Engine::State::do_step() {
  PlannedStep step = scheduler.plan();
  if (step.shares.empty() && step.batch.ops.empty()) co_return;
  const net::TimePoint now = clock->now();
  for (const PlannedStep::Share& share : step.shares) {
    if (share.job->was_started) continue;
    share.job->was_started = true;
    share.job->started = now;
  }
  model::StepBatch batch = step.batch;
  Result<model::StepResult> result = co_await executor->step(std::move(batch));
  if (is_closed) co_return;
  if (result.ok()) {
    n_caches_lost_in_a_row = 0;
    scheduler.commit(step);
    const Result<void> checked = check_result(step, *result, executor->info().vocab_size);
    if (checked.ok()) {
      deliver(step, *result);
    } else {
      fail(step, checked.error());
    }
    co_return;
  }
  const Error error = std::move(result).error();
  if (error.code == ErrorCode::kCachesLost) {
    caches_lost(error);
  } else if (error.code == ErrorCode::kInvalidArgument) {
    scheduler.roll_back(step);
    fail(step, error);
  } else {
    std::vector<model::SequenceId> doubtful = scheduler.abandon(step);
    fail(step, error);
    co_await free_doubtful(std::move(doubtful));
  }
}

/// After a step that failed half-way nobody knows which of its sequences exist. Each is freed by a
/// step of its own, so that the refusal for one that does not exist hurts nobody else.
asio::awaitable<void> Engine::State::free_doubtful(std::vector<model::SequenceId> doubtful) {
  for (const model::SequenceId seq : doubtful) {
    if (is_closed) co_return;
    model::StepBatch batch;
    batch.ops.push_back({.kind = model::SequenceOp::Kind::kFree, .seq = seq});
    const Result<model::StepResult> result = co_await executor->step(std::move(batch));
    if (is_closed || result.ok()) continue;
    if (result.error().code == ErrorCode::kCachesLost) {
      caches_lost(result.error());
      co_return;
    }
    if (result.error().code != ErrorCode::kInvalidArgument) co_return;  // Gone: nothing to free.
  }
}

void Engine::State::caches_lost(const Error& error) {
  if (++n_caches_lost_in_a_row > kCachesLostInARowMax) {
    scheduler.caches_lost();
    fail_all({ErrorCode::kUnavailable, error.message});
    return;
  }
  log_warning("caches lost, {} requests are replayed: {}", jobs.size(), error.message);
  scheduler.caches_lost();
}

void Engine::State::deliver(const PlannedStep& step, model::StepResult& result) {
  const net::TimePoint now = clock->now();
  std::size_t next = 0;
  for (const PlannedStep::Share& share : step.shares) {
    Job& job = *share.job;
    const std::size_t end = next + share.n_outputs;
    for (; next < end; ++next) {
      if (is_closed) return;
      if (job.finished) continue;
      if (job.n_generated() == 0) job.first_token = now;
      deliver_output(job, step.batch.outputs[next], result.outputs[next], now);
    }
    if (is_closed) return;
    if (!job.finished && !job.generates() && job.n_pending() == 0)
      finish(job, FinishReason::kLength);
  }
}

void Engine::State::deliver_output(Job& job, const model::OutputRequest& asked,
                                   model::StepOutput& output, net::TimePoint now) {
  const bool is_prompt = asked.kind == model::OutputRequest::Kind::kScore;
  if (!is_prompt && job.request.is_end && job.request.is_end(output.id)) {
    finish(job, FinishReason::kStop);
    return;
  }
  TokenEvent event{
      .is_prompt = is_prompt,
      .position = static_cast<std::uint32_t>(is_prompt ? job.n_scored : job.tokens.size()),
      .id = output.id,
      .logprob = output.logprob,
      .top = std::move(output.top)};
  if (is_prompt) {
    ++job.n_scored;
  } else {
    job.tokens.push_back(output.id);
    job.last_token = now;
  }
  if (job.callbacks.on_token) job.callbacks.on_token(std::move(event));
  if (is_closed || job.finished || is_prompt) return;
  const bool is_last = job.request.n_predict && job.n_generated() >= *job.request.n_predict;
  if (is_last || job.tokens.size() > scheduler.max_tokens()) finish(job, FinishReason::kLength);
}

void Engine::State::fail(const PlannedStep& step, const Error& error) {
  for (const PlannedStep::Share& share : step.shares) {
    if (is_closed) return;
    if (!share.job->finished) finish(*share.job, FinishReason::kError, error);
  }
}

void Engine::State::fail_all(const Error& error) {
  for (const std::shared_ptr<Job>& job : scheduler.jobs()) {
    if (is_closed) return;
    if (!job->finished) finish(*job, FinishReason::kError, error);
  }
}

void Engine::State::finish(Job& job, FinishReason reason, std::optional<Error> error) {
  job.finished = true;
  jobs.erase(job.id);
  Finish finish{.reason = reason,
                .error = std::move(error),
                .n_prompt = static_cast<std::uint32_t>(job.n_prompt()),
                .n_generated = static_cast<std::uint32_t>(job.n_generated())};
  if (job.first_token > job.started) finish.prefill_time = job.first_token - job.started;
  if (job.n_generated() > 0) finish.decode_time = job.last_token - job.first_token;
  // Moved out first: the callback may destroy what its closure holds.
  const auto on_finish = std::move(job.callbacks.on_finish);
  if (on_finish) on_finish(std::move(finish));
}

Engine::Engine(asio::any_io_executor loop, const net::Clock& clock, model::Executor& executor,
               const EngineOptions& options)
    : state_(std::make_shared<State>(std::move(loop), clock, executor, options)) {}

Engine::~Engine() {
  state_->is_closed = true;
  state_->jobs.clear();
}

namespace {

Result<void> check_request(const Request& request, const model::ExecutorInfo& info,
                           std::size_t max_tokens) {
  if (request.prompt.empty()) return invalid("the prompt is empty, need at least one token");
  if (request.prompt.size() > max_tokens) {
    return invalid(
        fmt::format("the prompt has {} tokens, the context holds {}: shorten the prompt or "
                    "ask for a larger context (-c)",
                    request.prompt.size(), max_tokens));
  }
  for (std::size_t i = 0; i < request.prompt.size(); ++i) {
    const TokenId id = request.prompt[i];
    if (id >= 0 && static_cast<std::uint32_t>(id) < info.vocab_size) continue;
    return invalid(fmt::format("token {} of the prompt is {}, the model's ids are 0 to {}", i, id,
                               info.vocab_size - 1));
  }
  const std::uint32_t n_top = std::max(request.n_top, request.prompt_n_top.value_or(0));
  const std::uint32_t n_top_max = std::min(model::kTopMax, info.vocab_size);
  if (n_top > n_top_max) {
    return invalid(
        fmt::format("{} most probable tokens were asked for, at most {} can be", n_top, n_top_max));
  }
  return sampling::validate(request.sampling, info.vocab_size);
}

}  // namespace

Result<RequestId> Engine::submit(Request request, RequestCallbacks callbacks) {
  State& state = *state_;
  RECUA_RETURN_IF_ERROR(check_request(request, info(), state.scheduler.max_tokens()));
  auto job = std::make_shared<Job>();
  job->id = state.next_id++;
  job->tokens = request.prompt;
  job->n_scored = 1;
  job->request = std::move(request);
  job->callbacks = std::move(callbacks);
  state.jobs.emplace(job->id, job);
  const bool nothing_to_do =
      !job->generates() && (!job->request.prompt_n_top || job->n_prompt() == 1);
  if (nothing_to_do) {
    asio::post(state.loop, [self = state_, job] {
      if (!self->is_closed && !job->finished) self->finish(*job, FinishReason::kLength);
    });
    return job->id;
  }
  state.scheduler.add(job);
  state.start();
  return job->id;
}

void Engine::cancel(RequestId id) {
  const auto found = state_->jobs.find(id);
  if (found == state_->jobs.end()) return;
  const std::shared_ptr<Job> job = found->second;
  state_->finish(*job, FinishReason::kCancelled);
}

const asio::any_io_executor& Engine::loop() const { return state_->loop; }

const model::ExecutorInfo& Engine::info() const { return state_->executor->info(); }

std::size_t Engine::n_requests() const { return state_->jobs.size(); }

std::size_t Engine::n_pages_free() const {
  return state_->scheduler.n_pages_free() + state_->scheduler.n_pages_finished();
}

}  // namespace recua::engine
