#include "cluster/worker_state.h"

#include <utility>

#include <fmt/format.h>

#include "cluster/worker_client.h"
#include "quant/data_type.h"
#include "sys/memory.h"

namespace recua::cluster {
namespace {

/// Each session has threads and descriptors of its own.
constexpr std::size_t kSessionsMax = 64;

}  // namespace

WorkerState::WorkerState(net::Env env_in, Offload& offload, DeviceFactory make_device,
                         WorkerOptions options_in)
    : env(std::move(env_in)),
      options(std::move(options_in)),
      measurements(offload, options.measuring, [this] { return at_work(); }) {
  session_env = {.name = options.name,
                 .env = env,
                 .offload = &offload,
                 .make_device = std::move(make_device),
                 .models_dir = options.models_dir,
                 .cache_dir = options.cache_dir,
                 .n_threads = options.n_threads,
                 .compute_mutex = &compute_mutex,
                 .memory_free = [this] { return memory_free(); },
                 .link_policy = options.link_policy};
}

std::uint64_t WorkerState::memory_free() {
  forget_gone_sessions();
  const bool limited = options.memory_bytes != 0;
  const std::uint64_t limit = limited ? options.memory_bytes : sys::memory_info().available_bytes;
  std::uint64_t used = 0;
  for (const auto& weak : holding_memory) {
    const auto session = weak.lock();
    if (session != nullptr && (limited || !session->loaded())) used += session->memory_bytes();
  }
  for (const auto& client : clients) used += client->echo_bytes();
  return limit > used ? limit - used : 0;
}

bool WorkerState::at_work() {
  forget_gone_sessions();
  return !holding_memory.empty() || n_echoes() > 0;
}

void WorkerState::forget_gone_sessions() {
  std::erase_if(holding_memory, [](const auto& session) { return session.expired(); });
}

rpc::PeerInfo WorkerState::self_info() {
  rpc::PeerInfo info;
  info.name = options.name;
  info.software_version = RECUA_VERSION;
  info.memory_free_bytes = memory_free();
  info.memory_total_bytes =
      options.memory_bytes != 0 ? options.memory_bytes : sys::memory_info().total_bytes;
  info.n_threads = static_cast<std::uint32_t>(options.n_threads);
  for (const rpc::Feature feature :
       {rpc::Feature::kEcho, rpc::Feature::kTensorSplit, rpc::Feature::kLora,
        rpc::Feature::kGroupOptions, rpc::Feature::kSharedConnection}) {
    info.features.push_back(static_cast<std::uint32_t>(feature));
  }
  if (options.make_training) {
    info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTraining));
  }
  if (measurements.is_there()) {
    info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kMeasure));
  }
  for (const quant::DataType type : quant::kAllDataTypes) {
    info.data_types.push_back(static_cast<std::uint32_t>(type));
  }
  info.shared_memory_host = options.shared_memory_host;
  info.rdma_ports = options.rdma_ports;
  return info;
}

std::shared_ptr<ChannelHost> WorkerState::find_host(std::uint64_t id) const {
  for (const auto& client : clients) {
    if (std::shared_ptr<ChannelHost> host = client->find_host(id); host != nullptr) return host;
  }
  return nullptr;
}

std::size_t WorkerState::n_echoes() const {
  std::size_t n = 0;
  for (const auto& client : clients) n += client->n_echoes();
  return n;
}

Result<void> WorkerState::check_new_session(std::uint64_t id) {
  if (find_host(id) != nullptr) {
    return Error{ErrorCode::kProtocol, fmt::format("session {:016x} is loaded already", id)};
  }
  forget_gone_sessions();
  if (holding_memory.size() < kSessionsMax) return ok();
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("{} sessions are open here already, the most that a worker takes",
                           holding_memory.size())};
}

}  // namespace recua::cluster
