// Connections to workers, and what the workers say on them unasked.

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "cluster/coordinator_impl.h"
#include "rpc/wire_error.h"

namespace recua::cluster {

namespace asio = boost::asio;

asio::awaitable<Result<void>> ClusterImpl::connect(std::size_t index) {
  const auto self = shared_from_this();
  Peer& peer = peers_[index];
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(peer.endpoint, options_.connect_timeout);
  if (!connection.ok()) {
    co_return Error{connection.error().code,
                    fmt::format("worker {}: {}", peer.name, connection.error().message)};
  }
  rpc::PeerInfo info = self_;
  Result<rpc::PeerInfo> welcome =
      co_await rpc::client_handshake(env_, **connection, info, options_.connect_timeout);
  if (!welcome.ok()) {
    co_return Error{welcome.error().code,
                    fmt::format("worker {}: {}", peer.name, welcome.error().message)};
  }
  peer.info = std::move(*welcome);
  const std::weak_ptr<ClusterImpl> weak = self;
  rpc::ControlHandlers handlers;
  handlers.on_request =
      [weak, index](wire::ControlMessage request) -> asio::awaitable<Result<wire::ControlMessage>> {
    const auto alive = weak.lock();
    if (alive == nullptr) co_return Error{ErrorCode::kCancelled, "the coordinator is leaving"};
    Result<wire::ControlMessage> reply = co_await alive->answer(index, std::move(request));
    co_return reply;
  };
  handlers.on_notice = [weak, index](const wire::ControlMessage& notice) {
    if (const auto alive = weak.lock()) alive->take_notice(index, notice);
  };
  handlers.on_lost = [weak, name = peer.name](const Error& error) {
    if (const auto alive = weak.lock()) {
      alive->lost({ErrorCode::kUnavailable, fmt::format("worker {}: {}", name, error.message)});
    }
  };
  peer.control = std::make_unique<rpc::ControlConnection>(env_, std::move(*connection),
                                                          options_.control, std::move(handlers));
  co_return ok();
}

asio::awaitable<Result<wire::ControlMessage>> ClusterImpl::call(std::size_t index,
                                                                wire::ControlMessage request,
                                                                net::Duration timeout) {
  Peer& peer = peers_[index];
  Result<wire::ControlMessage> reply = co_await peer.control->call(std::move(request), timeout);
  if (!reply.ok()) {
    co_return Error{reply.error().code,
                    fmt::format("worker {}: {}", peer.name, reply.error().message)};
  }
  co_return reply;
}

asio::awaitable<Result<OpenedChannel>> ClusterImpl::channel_to(std::size_t index,
                                                               rpc::ChannelRequest request) {
  const Peer& peer = peers_[index];
  OpenedChannel out;
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(peer.endpoint, options_.connect_timeout);
  if (!connection.ok()) {
    co_return Error{connection.error().code,
                    fmt::format("worker {}: {}", peer.name, connection.error().message)};
  }
  out.connection = std::move(*connection);
  rpc::PeerInfo info = self_;
  Result<rpc::ChannelHandshake> agreed = co_await rpc::channel_handshake(
      env_, *out.connection, info, request, options_.connect_timeout);
  if (!agreed.ok()) {
    co_return Error{agreed.error().code,
                    fmt::format("worker {}: {}", peer.name, agreed.error().message)};
  }
  out.agreed = std::move(*agreed);
  co_return out;
}

void ClusterImpl::take_notice(std::size_t index, const wire::ControlMessage& notice) {
  Peer& peer = peers_[index];
  if (notice.has_load_progress() && notice.load_progress().session() == id_.session) {
    peer.bytes_done = std::min(notice.load_progress().bytes_done(), peer.bytes_total);
    std::uint64_t done = 0;
    std::uint64_t total = 0;
    for (const Peer& each : peers_) {
      done += each.bytes_done;
      total += each.bytes_total;
    }
    if (progress_.loading) progress_.loading(done, total);
  } else if (notice.has_session_failed() && notice.session_failed().session() == id_.session) {
    const wire::SessionFailed& failed = notice.session_failed();
    const Error error = rpc::from_peer(peer.name, failed.code(), failed.message());
    lost({error.code, "worker " + error.message});
  } else if (notice.has_link_report() && notice.link_report().session() == id_.session) {
    links_.report(index, notice.link_report());
  }
}

}  // namespace recua::cluster
