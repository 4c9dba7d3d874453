// Two coroutines per connection, one reads and one writes; a timer for the heartbeat. All of them,
// and every waiting call, share State, so that any of them may end last.
#include "rpc/control.h"

#include <deque>
#include <map>
#include <optional>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "net/deadline.h"
#include "net/event.h"
#include "rpc/frame.h"
#include "rpc/message_name.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

/// A call that waits for its reply.
struct PendingCall {
  explicit PendingCall(const net::asio::any_io_executor& executor) : changed(executor) {}

  std::optional<Result<wire::ControlMessage>> outcome;
  net::Event changed;

  void finish(Result<wire::ControlMessage> result) {
    if (outcome) return;
    outcome.emplace(std::move(result));
    changed.notify_all();
  }
};

}  // namespace

struct ControlConnection::State : std::enable_shared_from_this<ControlConnection::State> {
  State(const net::Env& e, std::unique_ptr<net::Connection> c, const ControlOptions& o,
        ControlHandlers h)
      : env(e),
        connection(std::move(c)),
        options(o),
        handlers(std::move(h)),
        queue_changed(env.executor),
        last_heard(env.clock->now()) {}

  net::Env env;
  std::unique_ptr<net::Connection> connection;
  ControlOptions options;
  ControlHandlers handlers;

  std::map<std::uint64_t, std::shared_ptr<PendingCall>> calls;
  std::uint64_t last_id = 0;
  int n_requests = 0;  // The peer's, at work here.

  std::deque<std::vector<std::byte>> queue;
  std::size_t queue_bytes = 0;  // What is being written included.
  net::Event queue_changed;

  net::TimePoint last_heard;
  std::uint64_t n_pings = 0;
  std::unique_ptr<net::Timer> heartbeat;
  std::optional<Error> ended;  // Why nothing goes any more.
  bool closed = false;         // By this side: nobody wants to hear of it.

  [[nodiscard]] const std::string& peer() const { return connection->peer(); }

  void end(const Error& error, bool tell) {
    if (ended) return;
    ended = error;
    heartbeat.reset();
    connection->close();
    queue.clear();
    queue_bytes = 0;
    queue_changed.notify_all();
    for (auto& [id, call] : std::exchange(calls, {})) call->finish(error);
    if (!tell || !handlers.on_lost) return;
    net::asio::post(env.executor, [self = shared_from_this(), error] {
      if (!self->closed) self->handlers.on_lost(error);
    });
  }

  /// kResourceExhausted when the queue is full; kInvalidArgument when no frame can hold it.
  Result<void> enqueue(FrameKind kind, const google::protobuf::MessageLite& message) {
    if (ended) return *ended;
    RECUA_ASSIGN_OR_RETURN(std::vector<std::byte> bytes,
                           encode_frame(kind, message, kFrameBytesMax));
    if (queue_bytes + bytes.size() > options.queue_bytes_max) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{} bytes wait to be sent to {} already, at most {} may",
                               queue_bytes, peer(), options.queue_bytes_max)};
    }
    queue_bytes += bytes.size();
    queue.push_back(std::move(bytes));
    queue_changed.notify_all();
    return ok();
  }

  void start_heartbeat() {
    const net::TimePoint next = env.clock->now() + options.heartbeat_interval;
    const std::weak_ptr<State> weak = weak_from_this();
    heartbeat = env.clock->start_timer(env.executor, next, [weak] {
      if (const std::shared_ptr<State> self = weak.lock()) self->beat();
    });
  }

  void beat() {
    const net::Duration silence = env.clock->now() - last_heard;
    const net::Duration limit = options.heartbeat_interval * options.lost_after_intervals;
    if (silence >= limit) {
      end(Error{ErrorCode::kTimeout, fmt::format("{} has been silent for {}: taken for lost",
                                                 peer(), net::to_string(limit))},
          true);
      return;
    }
    wire::Ping ping;
    ping.set_number(++n_pings);
    // A full queue means that the peer does not read: then silence will tell.
    if (Result<void> sent = enqueue(FrameKind::kPing, ping); !sent.ok())
      log_debug("no ping to {}: {}", peer(), sent.error().message);
    if (!ended) start_heartbeat();
  }

  Result<void> take(Frame frame) {
    switch (frame.kind) {
      case FrameKind::kRequest: {
        wire::ControlMessage request;
        RECUA_RETURN_IF_ERROR(parse_payload(frame, peer(), request));
        if (request.id() == 0) {
          return Error{ErrorCode::kProtocol,
                       fmt::format("{} sent a request with id 0, must be 1 or more", peer())};
        }
        take_request(std::move(request));
        return ok();
      }
      case FrameKind::kReply: {
        wire::ControlMessage reply;
        RECUA_RETURN_IF_ERROR(parse_payload(frame, peer(), reply));
        take_reply(std::move(reply));
        return ok();
      }
      case FrameKind::kNotice: {
        wire::ControlMessage notice;
        RECUA_RETURN_IF_ERROR(parse_payload(frame, peer(), notice));
        if (handlers.on_notice) handlers.on_notice(notice);
        return ok();
      }
      case FrameKind::kPing: {
        wire::Ping ping;
        RECUA_RETURN_IF_ERROR(parse_payload(frame, peer(), ping));
        wire::Pong pong;
        pong.set_number(ping.number());
        if (Result<void> sent = enqueue(FrameKind::kPong, pong); !sent.ok())
          log_debug("no pong to {}: {}", peer(), sent.error().message);
        return ok();
      }
      case FrameKind::kPong:
        return ok();  // That it came is all it says.
      case FrameKind::kHello:
      case FrameKind::kWelcome:
      case FrameKind::kReject:
        return Error{ErrorCode::kProtocol,
                     fmt::format("{} sent a handshake frame (kind {}) after the handshake", peer(),
                                 static_cast<int>(frame.kind))};
    }
    log_debug("{} sent a frame of unknown kind {}: skipped", peer(), static_cast<int>(frame.kind));
    return ok();
  }

  void take_reply(wire::ControlMessage reply) {
    const auto found = calls.find(reply.id());
    if (found == calls.end()) {
      log_debug("{} replied to request {}, which nobody waits for", peer(), reply.id());
      return;
    }
    const std::shared_ptr<PendingCall> call = found->second;
    calls.erase(found);
    if (reply.has_error()) {
      call->finish(from_peer(peer(), reply.error().code(), reply.error().message()));
    } else {
      call->finish(std::move(reply));
    }
  }

  void take_request(wire::ControlMessage request) {
    const std::uint64_t id = request.id();
    if (n_requests >= options.requests_max) {
      answer(id, Error{ErrorCode::kResourceExhausted,
                       fmt::format("{} of your requests are at work here, no more may be",
                                   n_requests)});
    } else if (!handlers.on_request || request.body_case() == wire::ControlMessage::BODY_NOT_SET) {
      answer(id, Error{ErrorCode::kUnsupported, "this kind of request is not known here"});
    } else {
      ++n_requests;
      net::asio::awaitable<void> work = serve(shared_from_this(), std::move(request));
      net::asio::co_spawn(env.executor, std::move(work), net::asio::detached);
    }
  }

  void answer(std::uint64_t id, Result<wire::ControlMessage> result) {
    wire::ControlMessage reply = result.ok() ? std::move(*result) : error_reply(result.error());
    reply.set_id(id);
    Result<void> sent = enqueue(FrameKind::kReply, reply);
    if (sent.ok() || ended) return;
    // Too large, or the queue is full: the peer waits for a word, and a short one may still fit.
    reply = error_reply(sent.error());
    reply.set_id(id);
    if (!enqueue(FrameKind::kReply, reply).ok()) {
      end(Error{ErrorCode::kUnavailable, fmt::format("{} does not read its replies", peer())},
          true);
    }
  }

  static net::asio::awaitable<void> serve(std::shared_ptr<State> self,
                                          wire::ControlMessage request) {
    const std::uint64_t id = request.id();
    // Third parties throw when there is no memory or thread; the peer still gets its answer.
    Result<wire::ControlMessage> result =
        Error{ErrorCode::kResourceExhausted, "no memory or threads for this request"};
    try {
      net::asio::awaitable<Result<wire::ControlMessage>> work =
          self->handlers.on_request(std::move(request));
      result = co_await std::move(work);
    } catch (const std::exception& error) {
      log_warning("{}: a request failed: {}", self->peer(), error.what());
    }
    --self->n_requests;
    self->answer(id, std::move(result));
  }

  static net::asio::awaitable<void> read_loop(std::shared_ptr<State> self) {
    const std::function<void()> on_progress = [raw = self.get()] {
      raw->last_heard = raw->env.clock->now();
    };
    while (!self->ended) {
      Result<Frame> frame = co_await read_frame(*self->connection, kFrameBytesMax, on_progress);
      if (self->ended) break;
      Result<void> taken = frame.ok() ? self->take(std::move(*frame)) : std::move(frame).error();
      if (!taken.ok()) self->end(taken.error(), true);
    }
  }

  static net::asio::awaitable<void> write_loop(std::shared_ptr<State> self) {
    while (!self->ended) {
      if (self->queue.empty()) {
        co_await self->queue_changed.wait();
        continue;
      }
      const std::vector<std::byte> bytes = std::move(self->queue.front());
      self->queue.pop_front();
      const std::span<const std::byte> span(bytes);
      Result<void> written = co_await self->connection->write(span);
      if (self->ended) break;
      self->queue_bytes -= bytes.size();
      self->queue_changed.notify_all();
      if (!written.ok()) self->end(written.error(), true);
    }
  }
};

ControlConnection::ControlConnection(const net::Env& env,
                                     std::unique_ptr<net::Connection> connection,
                                     const ControlOptions& options, ControlHandlers handlers)
    : state_(std::make_shared<State>(env, std::move(connection), options, std::move(handlers))) {
  net::asio::awaitable<void> reading = State::read_loop(state_);
  net::asio::awaitable<void> writing = State::write_loop(state_);
  net::asio::co_spawn(env.executor, std::move(reading), net::asio::detached);
  net::asio::co_spawn(env.executor, std::move(writing), net::asio::detached);
  state_->start_heartbeat();
}

ControlConnection::~ControlConnection() { close(); }

const std::string& ControlConnection::peer() const { return state_->peer(); }
bool ControlConnection::lost() const { return state_->ended.has_value(); }

namespace {

/// Waits for the outcome of a call; its own coroutine, so that it shares no life with the object.
template <class State>
net::asio::awaitable<Result<wire::ControlMessage>> do_call(std::shared_ptr<State> state,
                                                           wire::ControlMessage request,
                                                           net::Duration timeout) {
  if (state->ended) co_return *state->ended;
  const std::uint64_t id = ++state->last_id;
  request.set_id(id);
  const auto call = std::make_shared<PendingCall>(state->env.executor);
  state->calls.emplace(id, call);
  if (Result<void> sent = state->enqueue(FrameKind::kRequest, request); !sent.ok()) {
    state->calls.erase(id);
    co_return std::move(sent).error();
  }
  const net::TimePoint deadline = state->env.clock->now() + timeout;
  const std::string_view name = message_name(request.body_case());
  const auto timer = state->env.clock->start_timer(
      state->env.executor, deadline, [call, timeout, name, peer = state->peer()] {
        call->finish(Error{ErrorCode::kTimeout, fmt::format("no reply to {} from {} within {}",
                                                            name, peer, net::to_string(timeout))});
      });
  while (!call->outcome) co_await call->changed.wait();
  state->calls.erase(id);
  co_return std::move(*call->outcome);
}

template <class State>
net::asio::awaitable<void> do_flush(std::shared_ptr<State> state, net::Duration timeout) {
  bool expired = false;
  const auto timer = state->env.clock->start_timer(
      state->env.executor, state->env.clock->now() + timeout, [&expired, raw = state.get()] {
        expired = true;
        raw->queue_changed.notify_all();
      });
  while (!state->ended && state->queue_bytes > 0 && !expired) co_await state->queue_changed.wait();
}

}  // namespace

net::asio::awaitable<Result<wire::ControlMessage>> ControlConnection::call(
    wire::ControlMessage request, net::Duration timeout) {
  RECUA_CHECK(request.body_case() != wire::ControlMessage::BODY_NOT_SET);
  return do_call(state_, std::move(request), timeout);
}

Result<void> ControlConnection::notify(wire::ControlMessage notice) {
  notice.set_id(0);
  return state_->enqueue(FrameKind::kNotice, notice);
}

net::asio::awaitable<void> ControlConnection::flush(net::Duration timeout) {
  return do_flush(state_, timeout);
}

void ControlConnection::close() {
  state_->closed = true;
  state_->end(Error{ErrorCode::kCancelled,
                    fmt::format("the connection to {} was closed on this side", state_->peer())},
              false);
}

}  // namespace recua::rpc
