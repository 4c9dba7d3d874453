#include "engine/token_stream.h"

#include <deque>
#include <utility>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace recua::engine {

namespace asio = boost::asio;

struct TokenStream::Queue {
  explicit Queue(const asio::any_io_executor& loop)
      : wake(loop, asio::steady_timer::time_point::max()) {}

  RequestId id = 0;
  std::deque<TokenEvent> events;
  std::optional<Finish> finish;
  asio::steady_timer wake;  // Never expires: cancelling it wakes the reader.
};

Result<TokenStream> TokenStream::open(Engine& engine, Request request) {
  auto queue = std::make_shared<Queue>(engine.loop());
  RequestCallbacks callbacks;
  callbacks.on_token = [queue](TokenEvent&& event) {
    queue->events.push_back(std::move(event));
    queue->wake.cancel();
  };
  callbacks.on_finish = [queue](Finish&& finish) {
    queue->finish = std::move(finish);
    queue->wake.cancel();
  };
  RECUA_ASSIGN_OR_RETURN(queue->id, engine.submit(std::move(request), std::move(callbacks)));
  return TokenStream(engine, std::move(queue));
}

TokenStream::~TokenStream() { cancel(); }

void TokenStream::cancel() {
  if (queue_ && !queue_->finish) engine_->cancel(queue_->id);
}

const std::optional<Finish>& TokenStream::finish() const { return queue_->finish; }

asio::awaitable<Result<std::optional<TokenEvent>>> TokenStream::next() {
  const std::shared_ptr<Queue> queue = queue_;
  while (queue->events.empty() && !queue->finish) {
    boost::system::error_code ignored;
    co_await queue->wake.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  if (!queue->events.empty()) {
    std::optional<TokenEvent> event = std::move(queue->events.front());
    queue->events.pop_front();
    co_return event;
  }
  if (queue->finish->error) co_return *queue->finish->error;
  co_return std::optional<TokenEvent>{};
}

}  // namespace recua::engine
