#pragma once
/// Client: one coordinator as a worker sees it. Its control connection, its requests, and the
/// sessions that it opened, which end with the connection.
///
/// An error of a request is the reply to it. Shared by WorkerState::clients while serve() runs and
/// by the coroutines of requests, which may end later; what sessions call holds it weakly.
/// Threads: the worker's control loop.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/chunk_requests.h"
#include "cluster/echo_session.h"
#include "cluster/session.h"
#include "cluster/training_host.h"
#include "cluster/worker_state.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/channel.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

class Client : public std::enable_shared_from_this<Client> {
 public:
  Client(std::shared_ptr<WorkerState> worker, rpc::PeerInfo peer);

  /// Answers requests until the coordinator is lost or end() is called; then closes its sessions.
  boost::asio::awaitable<void> serve(std::unique_ptr<net::Connection> connection);
  void end();

  /// Its open session of this id, whatever its kind. Null: none.
  [[nodiscard]] std::shared_ptr<ChannelHost> find_host(std::uint64_t id) const;
  [[nodiscard]] std::size_t n_sessions() const { return sessions_.size(); }
  [[nodiscard]] std::size_t n_echoes() const { return echoes_.size(); }
  [[nodiscard]] std::uint64_t echo_bytes() const;

 private:
  using Reply = Result<wire::ControlMessage>;

  // The connection: worker_client.cc.
  boost::asio::awaitable<Reply> answer(wire::ControlMessage request);
  void tell(wire::ControlMessage notice) const;
  void tell_failed(rpc::ChannelId id, const Error& error) const;
  CallCoordinator call_coordinator();
  SessionEvents session_events(rpc::ChannelId id);

  // The life of sessions: worker_sessions.cc.
  boost::asio::awaitable<Reply> load(const wire::LoadSlice& message);
  boost::asio::awaitable<Reply> open_training(const wire::OpenTraining& message);
  Reply add_state(const wire::TrainState& piece);
  Reply open_echo(const wire::OpenEcho& message);
  boost::asio::awaitable<Reply> open_channel(const wire::OpenChannel& message);
  Reply start(const wire::StartSession& message);
  boost::asio::awaitable<Reply> close_session(const wire::CloseSession& message);

  std::shared_ptr<WorkerState> worker_;
  rpc::PeerInfo peer_;
  std::unique_ptr<rpc::ControlConnection> control_;
  std::map<std::uint64_t, std::shared_ptr<Session>> sessions_;
  std::map<std::uint64_t, std::shared_ptr<EchoSession>> echoes_;  // Measurements.
  std::map<std::uint64_t, std::shared_ptr<TrainingSession>> trainings_;
  net::Event gone_;
  bool lost_ = false;
};

}  // namespace recua::cluster
