#pragma once
/// ControlConnection: requests, replies and notices in both directions over one connection, after
/// the handshake. docs/protocol.md, "Control messages".
///
/// A request waits for its reply until its own deadline; heartbeats notice a silent peer long
/// before that. Whatever arrives counts as a sign of life. When the peer is lost (closed, silent,
/// broke the rules), every waiting call fails with that error and on_lost is called once, from the
/// loop. Writes are queued and leave in order; the queue is bounded. Threads: all on the loop of
/// env.executor. env's clock and network outlive the object.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "net/connection.h"
#include "rpc/recua.pb.h"

namespace recua::rpc {

struct ControlOptions {
  net::Duration heartbeat_interval = std::chrono::seconds(1);
  int lost_after_intervals = 3;  // Of silence.
  std::size_t queue_bytes_max = std::size_t{64} << 20;
  int requests_max = 64;  // Of the peer, at work at once; more are answered kResourceExhausted.
};

struct ControlHandlers {
  /// A peer's request. An Error becomes an ErrorReply. Absent: every request is kUnsupported. The
  /// coroutine may still run after close(); its reply is then dropped.
  std::function<net::asio::awaitable<Result<wire::ControlMessage>>(wire::ControlMessage)>
      on_request;
  std::function<void(const wire::ControlMessage&)> on_notice;
  std::function<void(const Error&)> on_lost;
};

class ControlConnection {
 public:
  ControlConnection(const net::Env& env, std::unique_ptr<net::Connection> connection,
                    const ControlOptions& options, ControlHandlers handlers);
  ControlConnection(const ControlConnection&) = delete;
  ControlConnection& operator=(const ControlConnection&) = delete;
  ~ControlConnection();  // close()

  [[nodiscard]] const std::string& peer() const;
  [[nodiscard]] bool lost() const;

  /// Sends request.body and returns the reply's, never an ErrorReply: that becomes an Error that
  /// names the peer. kTimeout, kUnavailable, kProtocol, kCancelled (close() was called), or the
  /// peer's code.
  net::asio::awaitable<Result<wire::ControlMessage>> call(wire::ControlMessage request,
                                                          net::Duration timeout);
  /// Queues a notice. kResourceExhausted: the queue is full, nothing was queued.
  Result<void> notify(wire::ControlMessage notice);
  /// Returns when everything queued so far has left, or the peer is lost, or time is up.
  net::asio::awaitable<void> flush(net::Duration timeout);

  /// Ends it from this side: waiting calls fail with kCancelled, on_lost is not called. Idempotent.
  void close();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace recua::rpc
