#pragma once
/// Ordered, reliable byte streams between processes. TCP is one (net/tcp), the simulated network of
/// tests/sim another (net/sim), TLS will wrap either. net never sees a tensor.
///
/// Two ways to use a Connection, never both at once:
///   control: read() and write() as coroutines on the connection's loop;
///   data:    try_read() and try_write() from the thread that owns the connection, which spins on
///   them
///            and, when nothing moves, arms a callback and sleeps in its own loop.
///
/// Errors: kUnavailable (the peer closed or is gone), kTimeout, kIo, kCancelled (closed on this
/// side); each message names the peer. After an error the connection is only good for close().
/// Threads: one at a time; move_to() hands a connection over to another thread's loop.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "net/clock.h"
#include "net/ready_callback.h"

namespace recua::net {

/// Where a process listens. host is a name, an IPv4 or an IPv6 address without brackets.
struct Endpoint {
  std::string host;
  std::uint16_t port = 0;

  /// "host:port", with brackets around an IPv6 address.
  [[nodiscard]] std::string to_string() const;
  /// Accepts host:port, [v6]:port, :port (all addresses), host (default_port). kInvalidArgument
  /// says what would be right.
  static Result<Endpoint> parse(std::string_view text, std::uint16_t default_port);

  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

class Connection {
 public:
  Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  virtual ~Connection() = default;  // Closes.

  /// "10.0.0.5:7500", for messages and log lines.
  [[nodiscard]] virtual const std::string& peer() const = 0;
  /// The address of this end, without its port: "10.0.0.5", "fe80::1%eth0", the name of a simulated
  /// host. Empty when it is not known, such as after a failure.
  [[nodiscard]] virtual std::string local_address() const = 0;

  /// Fills all of out. kUnavailable when the stream ends before.
  virtual asio::awaitable<Result<void>> read(std::span<std::byte> out) = 0;
  /// Writes all of bytes, which stay untouched until it returns.
  virtual asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) = 0;

  /// What is there now, at most out.size() bytes; 0 when nothing is.
  virtual Result<std::size_t> try_read(std::span<std::byte> out) = 0;
  /// Writes from the parts in order, as one gathered call; returns the bytes taken, 0 when none
  /// fit.
  virtual Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) = 0;
  /// Calls `ready` once from the loop when try_read (try_write) may make progress or fail. One
  /// armed callback per direction; close() drops it uncalled.
  virtual void arm_read(ReadyCallback ready) = 0;
  virtual void arm_write(ReadyCallback ready) = 0;

  /// What becomes readable when try_read() may make progress or fail, for a WaitHandle that ends
  /// before the connection is closed; -1 where there is no such thing.
  [[nodiscard]] virtual int descriptor() const { return -1; }

  /// The same stream served by another loop. Nothing may be pending. This object is empty
  /// afterwards.
  virtual Result<std::unique_ptr<Connection>> move_to(asio::any_io_executor executor) = 0;

  /// Idempotent. A pending read or write fails with kCancelled. Call it on the connection's loop.
  virtual void close() = 0;
};

class Listener {
 public:
  Listener() = default;
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  virtual ~Listener() = default;

  /// Where it listens really, with the port that was given for port 0.
  [[nodiscard]] virtual const Endpoint& endpoint() const = 0;
  virtual asio::awaitable<Result<std::unique_ptr<Connection>>> accept() = 0;
  virtual void close() = 0;
};

class Network {
 public:
  Network() = default;
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  virtual ~Network() = default;

  /// kUnavailable, kTimeout: names the endpoint and what to check there.
  virtual asio::awaitable<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint,
                                                                       Duration timeout) = 0;
  virtual Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) = 0;
};

/// Longer than a small model takes for a token, since waking up costs as much as that. Zero where
/// this process has one processor: polling would take it from whoever brings what is awaited, be it
/// another process or the kernel's part of an emulated card (there a message then took until the
/// scheduler's next tick, 4 ms instead of 0.4).
Duration default_spin();

/// What control logic runs in: a loop, time, a network and randomness (for session ids and
/// secrets). The program builds one from the real things, tests/sim from simulated ones.
struct Env {
  asio::any_io_executor executor;
  Clock* clock = nullptr;
  Network* network = nullptr;
  std::function<std::uint64_t()> random;  // From any thread.
  /// The longest that a data path polls before it sleeps. Zero in a simulation.
  Duration spin = default_spin();
  /// For loops that serve one data path only: sleeps until a handler of the loop has run; false
  /// once the loop was stopped. Cheaper than leaving the coroutine. Empty elsewhere.
  std::function<bool()> run_one = {};
};

}  // namespace recua::net
