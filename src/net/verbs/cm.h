#pragma once
/// Connecting queue pairs through rdma_cm, which finds ports and routes by IP address and is the
/// only way on iWARP. The other way, where both ends tell each other LIDs, GIDs and numbers, is
/// QueuePair::connect().
///
/// The queue pair is an ordinary one, made on our own Device (the one whose name device() says), so
/// that it shares nothing with other connections. rdma_cm carries the request and its answer; the
/// queue pair's attributes come from it and are then set here.
///
///   passive:  cm_listen() -> listener.poll() gives requests -> make a queue pair -> accept()
///   active:   cm_connect() -> poll() until kResolved -> make a queue pair -> connect()
///   both:     poll() until kConnected; later kEnded means that the peer disconnected.
///
/// Nothing blocks. Only looking up addresses has a limit of its own; whoever waits for the rest
/// keeps the deadline and gives up by destroying the object, which also tells the peer.
/// Threads: one at a time per object.
/// Source: rdma_cm(7), rdma_establish(3), rdma_init_qp_attr in rdma_cma.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

/// Goes along with a request, so that the accepting end knows whose it is. Foreign bytes there.
using CmToken = std::array<std::byte, 16>;

/// What rdma_cm would choose otherwise, or leave at values that make lost peers cost minutes.
struct CmParameters {
  std::uint32_t mtu_bytes = 0;  // The same at both ends. 0: the active end's, as rdma_cm tells it.
  std::uint8_t timeout = 14;    // As in ConnectParameters.
  std::uint8_t retry_count = 6;
  std::uint8_t rnr_retry = 6;
  std::uint8_t min_rnr_timer = 12;
};

enum class CmState : std::uint8_t {
  kResolving,   // Active end: looking for device and route.
  kResolved,    // Active end: device() is known, connect() is due.
  kRequested,   // Passive end: accept() is due.
  kConnecting,  // Waiting for the other end.
  kConnected,
  kEnded,  // failure() says why.
};

class CmConnection {
 public:
  CmConnection() = default;
  CmConnection(const CmConnection&) = delete;
  CmConnection& operator=(const CmConnection&) = delete;
  virtual ~CmConnection() = default;  // Disconnects.

  /// Takes in what has happened.
  virtual CmState poll() = 0;
  [[nodiscard]] virtual const std::optional<Error>& failure() const = 0;
  /// The device and port that rdma_cm chose; empty and 0 while resolving.
  [[nodiscard]] virtual const std::string& device() const = 0;
  [[nodiscard]] virtual std::uint8_t device_port() const = 0;

  /// In kResolved. The queue pair is in INIT, on device() and device_port(), and stays alive until
  /// this is kConnected, kEnded or destroyed. kInvalidArgument: on another device.
  virtual Result<void> connect(QueuePair& queue_pair, const CmToken& token,
                               const CmParameters& parameters) = 0;
  /// In kRequested; the same otherwise.
  virtual Result<void> accept(QueuePair& queue_pair, const CmParameters& parameters) = 0;

  /// Calls `ready` once from the executor's loop when poll() may have something.
  virtual void arm(const asio::any_io_executor& executor, ReadyCallback ready) = 0;
};

struct CmRequest {
  CmToken token{};
  std::unique_ptr<CmConnection> connection;  // kRequested; destroying it rejects.
};

class CmListener {
 public:
  CmListener() = default;
  CmListener(const CmListener&) = delete;
  CmListener& operator=(const CmListener&) = delete;
  virtual ~CmListener() = default;

  /// The address given, and the port that rdma_cm chose.
  [[nodiscard]] virtual const Endpoint& endpoint() const = 0;
  [[nodiscard]] virtual const std::string& device() const = 0;
  [[nodiscard]] virtual std::uint8_t device_port() const = 0;
  /// The next request, or nothing. Requests without a whole token are rejected and logged.
  virtual Result<std::optional<CmRequest>> poll() = 0;
  virtual void arm(const asio::any_io_executor& executor, ReadyCallback ready) = 0;
};

/// Listens on a local IP address, at a free port. kNotFound: no RDMA device has that address.
/// kUnsupported: no rdma_cm in this build or kernel.
Result<std::unique_ptr<CmListener>> cm_listen(const std::string& local_address);

/// Begins to look for the way from a local IP address to a listener. resolve_timeout: for each of
/// its two steps.
Result<std::unique_ptr<CmConnection>> cm_connect(const std::string& local_address,
                                                 const Endpoint& remote, Duration resolve_timeout);

}  // namespace recua::net::verbs
