#include "cluster/worker.h"

#include <memory>
#include <set>
#include <string>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "cluster/worker_client.h"
#include "cluster/worker_state.h"
#include "rpc/handshake.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// Hands the connection to the session that waits for it.
asio::awaitable<void> serve_channel(std::shared_ptr<WorkerState> worker,
                                    std::unique_ptr<net::Connection> connection,
                                    rpc::ServerHandshake handshake) {
  const rpc::ChannelRequest request = *handshake.channel;
  const rpc::PeerInfo peer_info = handshake.peer;
  const std::shared_ptr<ChannelHost> host = worker->find_host(request.id.session);
  Result<rpc::RingShape> ring = Error{
      ErrorCode::kNotFound,
      fmt::format("no session {:016x} with epoch {} here", request.id.session, request.id.epoch)};
  if (host != nullptr && host->id().epoch == request.id.epoch) ring = host->ring(request);
  if (!ring.ok()) {
    Error error = ring.error();
    co_await rpc::reject(worker->env, *connection, std::move(error));
    co_return;
  }
  rpc::PeerInfo info = worker->self_info();
  const std::string peer = connection->peer();
  const rpc::Secret secret = host->secret();
  const Result<void> accepted =
      co_await rpc::accept_channel(worker->env, *connection, info, std::move(handshake), secret,
                                   *ring, worker->options.handshake_timeout);
  if (!accepted.ok()) {
    log_warning("dropped: {}", accepted.error().message);
    co_return;
  }
  const Result<void> attached = host->attach(std::move(connection), request, peer_info);
  if (!attached.ok()) log_warning("{}: dropped: {}", peer, attached.error().message);
}

asio::awaitable<void> serve_connection(std::shared_ptr<WorkerState> worker,
                                       std::unique_ptr<net::Connection> connection) {
  ++worker->n_connections;
  worker->handshaking.insert(connection.get());
  rpc::PeerInfo info = worker->self_info();
  Result<rpc::ServerHandshake> handshake = co_await rpc::server_handshake(
      worker->env, *connection, info, worker->options.handshake_timeout);
  worker->handshaking.erase(connection.get());
  if (!handshake.ok()) {
    log_warning("dropped: {}", handshake.error().message);
  } else if (worker->stopped) {
    connection->close();
  } else if (handshake->channel.has_value()) {
    co_await serve_channel(worker, std::move(connection), std::move(*handshake));
  } else {
    const auto client = std::make_shared<Client>(worker, std::move(handshake->peer));
    worker->clients.insert(client);
    co_await client->serve(std::move(connection));
    worker->clients.erase(client);
  }
  --worker->n_connections;
}

}  // namespace

Worker::Worker(net::Env env, Offload& offload, DeviceFactory make_device, WorkerOptions options)
    : state_(std::make_shared<WorkerState>(std::move(env), offload, std::move(make_device),
                                           std::move(options))) {}

Worker::~Worker() { stop(); }

std::size_t Worker::n_sessions() const {
  std::size_t n = 0;
  for (const auto& client : state_->clients) n += client->n_sessions();
  return n;
}

void Worker::stop() {
  if (std::exchange(state_->stopped, true)) return;
  const std::set<net::Connection*> handshaking = state_->handshaking;
  for (net::Connection* connection : handshaking) connection->close();
  const auto clients = state_->clients;
  for (const auto& client : clients) client->end();
}

asio::awaitable<Result<void>> Worker::serve(net::Listener& listener) {
  const std::shared_ptr<WorkerState> state = state_;
  while (!state->stopped) {
    Result<std::unique_ptr<net::Connection>> accepted = co_await listener.accept();
    if (!accepted.ok()) {
      if (state->stopped || accepted.error().code == ErrorCode::kCancelled) break;
      // Out of descriptors, say: others may close some. Never spin on it.
      log_warning("cannot accept a connection: {}", accepted.error().message);
      co_await state->env.clock->sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    if (state->n_connections >= state->options.connections_max) {
      log_warning("{}: refused, {} connections are open already", (*accepted)->peer(),
                  state->n_connections);
      continue;
    }
    asio::co_spawn(state->env.executor, serve_connection(state, std::move(*accepted)),
                   asio::detached);
  }
  co_return ok();
}

}  // namespace recua::cluster
