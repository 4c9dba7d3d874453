#pragma once
/// TokenStream: one request's tokens, taken one by one by a coroutine.
///
/// Tokens that nobody has taken yet wait in the stream (at most as many as the request generates).
/// Destroying the stream cancels the request. The engine must outlive it. Threads: the engine's
/// loop.

#include <memory>
#include <optional>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace recua::engine {

class TokenStream {
 public:
  /// The errors of Engine::submit().
  static Result<TokenStream> open(Engine& engine, Request request);

  TokenStream(TokenStream&&) noexcept = default;
  TokenStream& operator=(TokenStream&&) = delete;
  ~TokenStream();

  /// The next token; nullopt after the last one, finish() then says why it was the last. The
  /// executor's error, after the tokens that came before it. One call at a time.
  boost::asio::awaitable<Result<std::optional<TokenEvent>>> next();

  /// Ends the request; next() gives what had come, then nullopt.
  void cancel();

  /// Set once the request has ended.
  [[nodiscard]] const std::optional<Finish>& finish() const;

 private:
  struct Queue;
  TokenStream(Engine& engine, std::shared_ptr<Queue> queue)
      : engine_(&engine), queue_(std::move(queue)) {}

  Engine* engine_;
  std::shared_ptr<Queue> queue_;  // Shared with the callbacks; null when moved from.
};

}  // namespace recua::engine
