#pragma once
/// Engine: requests -> batches -> Executor steps -> token streams.
///
/// Many requests share each step (continuous batching, Yu et al. 2022, "Orca"; engine/scheduler.h
/// says how). Answers do not depend on what else is running. The engine is idle, without timers,
/// while it has no requests; per step it costs a few microseconds beside the executor.
///
/// Failures: an error of the executor ends the requests of that step with it, and the engine goes
/// on with the others. kCachesLost ends none: all sequences are replayed, and tokens that were
/// reported are not reported again. Threads: everything on one loop, the callbacks too.

#include <cstddef>
#include <cstdint>
#include <memory>

#include <boost/asio/any_io_executor.hpp>

#include "base/result.h"
#include "engine/request.h"
#include "model/executor.h"
#include "net/clock.h"

namespace recua::engine {

struct EngineOptions {
  std::size_t n_running_max = 256;  // Requests that hold pages at once; more of them wait.
};

class Engine {
 public:
  /// loop: where everything happens. clock and executor outlive the engine and any step that it had
  /// begun when it was destroyed.
  Engine(boost::asio::any_io_executor loop, const net::Clock& clock, model::Executor& executor,
         const EngineOptions& options = {});
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  /// Drops all requests without a word.
  ~Engine();

  /// Begins a request; its callbacks come later, from the loop. Nothing is computed for a wrong
  /// one: kInvalidArgument: empty prompt, prompt longer than the context, token ids or sampling
  /// settings out of range; the message says which and what would be right.
  Result<RequestId> submit(Request request, RequestCallbacks callbacks);

  /// Ends a request now: on_finish(kCancelled) is called before cancel() returns. Its pages are
  /// free for the next step. Unknown and finished requests are ignored.
  void cancel(RequestId id);

  [[nodiscard]] const boost::asio::any_io_executor& loop() const;
  [[nodiscard]] const model::ExecutorInfo& info() const;
  [[nodiscard]] std::size_t n_requests() const;
  /// For metrics and tests: pages that no unfinished request holds.
  [[nodiscard]] std::size_t n_pages_free() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  // Shared with a step on its way.
};

}  // namespace recua::engine
