#pragma once
/// WorkerState: what the connections of one worker share. Its settings, the coordinators that are
/// connected, and how much memory their sessions hold.
///
/// Owned together by the Worker and by the coroutines of its connections, so it outlives the
/// Worker until the last of them has ended. Threads: the worker's control loop; compute_mutex is
/// for the stages.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/measure_host.h"
#include "cluster/session.h"
#include "cluster/worker.h"
#include "net/connection.h"
#include "rpc/handshake.h"

namespace recua::cluster {

class Client;

struct WorkerState {
  WorkerState(net::Env env, Offload& offload, DeviceFactory make_device, WorkerOptions options);
  WorkerState(const WorkerState&) = delete;
  WorkerState& operator=(const WorkerState&) = delete;

  /// What a new session may use. Sessions that were closed count until they are really gone;
  /// without a limit of ours, loaded ones are what the system sees in use already.
  [[nodiscard]] std::uint64_t memory_free();
  /// Whether somebody wants this machine's time.
  [[nodiscard]] bool at_work();
  /// What the worker says of itself in handshakes.
  [[nodiscard]] rpc::PeerInfo self_info();
  /// The open session of this id, whatever its kind and whoever opened it. Null: none.
  [[nodiscard]] std::shared_ptr<ChannelHost> find_host(std::uint64_t id) const;
  /// Measurements that are open.
  [[nodiscard]] std::size_t n_echoes() const;
  /// Whether another session may be opened under this id. kProtocol: there is one.
  /// kResourceExhausted: there are too many.
  Result<void> check_new_session(std::uint64_t id);

  net::Env env;
  WorkerOptions options;
  MeasureHost measurements;
  std::mutex compute_mutex;
  SessionEnv session_env;
  std::set<std::shared_ptr<Client>> clients;
  std::set<net::Connection*> handshaking;                  // Closed by stop().
  std::vector<std::weak_ptr<ChannelHost>> holding_memory;  // Sessions that may still hold memory.
  std::size_t n_connections = 0;
  bool stopped = false;

 private:
  void forget_gone_sessions();
};

}  // namespace recua::cluster
