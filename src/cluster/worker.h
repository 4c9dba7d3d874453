#pragma once
/// Worker: serves slices to any number of coordinators. One listening port takes their control
/// connections and the tensor channels of all sessions.
///
/// A peer that breaks the rules, goes silent or leaves loses its connection and its sessions;
/// nobody else notices. Threads: everything on env.executor's loop; stages and disk through the
/// Offload.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "cluster/measuring.h"
#include "cluster/session.h"
#include "cluster/training_host.h"
#include "net/connection.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "rpc/link.h"

namespace recua::cluster {

struct WorkerOptions {
  std::string name = "worker";
  std::filesystem::path models_dir;  // Own copies of model files; empty: none.
  std::filesystem::path cache_dir;   // Chunks fetched before, and hashes.
  std::size_t n_threads = 1;         // As told to coordinators; also hashes in parallel.
  std::uint64_t memory_bytes = 0;    // Most that sessions may use; 0: what the machine has free.
  std::size_t connections_max = 1024;
  net::Duration handshake_timeout = std::chrono::seconds(5);
  rpc::ControlOptions control;
  const rpc::LinkPolicy* link_policy = nullptr;  // Outlives the worker. Null: TCP only.
  std::string shared_memory_host;                // Told to peers; empty: none.
  std::vector<rpc::RdmaPortInfo> rdma_ports;     // Told to peers.
  TrainingFactory make_training = {};            // Empty: this worker does not train.
  Measuring measuring = {};                      // Empty: it does not measure itself.
};

struct WorkerState;

class Worker {
 public:
  Worker(net::Env env, Offload& offload, DeviceFactory make_device, WorkerOptions options);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker();

  /// Accepts until the listener is closed.
  boost::asio::awaitable<Result<void>> serve(net::Listener& listener);
  /// Closes all sessions and connections. The loop then runs out of work by itself.
  void stop();

  [[nodiscard]] std::size_t n_sessions() const;

 private:
  std::shared_ptr<WorkerState> state_;  // Shared with the coroutines of its connections.
};

}  // namespace recua::cluster
