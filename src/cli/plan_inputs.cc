#include "cli/plan_inputs.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <unistd.h>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "cli/build_info.h"
#include "cli/net_report.h"
#include "cli/progress.h"
#include "cli/run_loop.h"
#include "cluster/chunks.h"
#include "cluster/cluster_file.h"
#include "cluster/json_fields.h"
#include "cluster/layer_probe.h"
#include "cluster/link_probe.h"
#include "cluster/machine_probe.h"
#include "cluster/measurements.h"
#include "compute/cpu/cpu_device.h"
#include "net/real_clock.h"
#include "net/shm/shared_memory.h"
#include "net/tcp/tcp_network.h"
#include "rpc/handshake.h"
#include "sys/memory.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

namespace asio = boost::asio;
using cluster::LinkSpec;
using cluster::MachineSpeed;

// Of each size and transport: enough for a median.
constexpr net::Duration kLinkProbeTime = std::chrono::milliseconds(100);

constexpr const char* kLoopback = "this host";

/// The types that most weights of the model have, those of the largest part first.
std::vector<quant::DataType> types_of(const cluster::ModelShape& model) {
  std::map<quant::DataType, std::uint64_t> n_weights;
  const auto add = [&](const cluster::MatrixShape& matrix) {
    n_weights[matrix.type] += matrix.n_weights;
  };
  for (const cluster::LayerShape& layer : model.layers) {
    for (const auto* matrices : {&layer.heads, &layer.kv, &layer.ffn, &layer.whole}) {
      for (const cluster::MatrixShape& matrix : *matrices) add(matrix);
    }
  }
  add(model.output);
  std::vector<std::pair<std::uint64_t, quant::DataType>> sorted;
  for (const auto& [type, n] : n_weights) sorted.emplace_back(n, type);
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<quant::DataType> out;
  for (const auto& [n, type] : sorted) out.push_back(type);
  return out;
}

/// Short rows cost more per weight; models of about the same width share a measurement.
std::uint32_t probe_width(std::uint32_t hidden_size) {
  return std::clamp(std::bit_ceil(hidden_size * 2 / 3 + 1), 256U, 4096U);
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "unnamed";
  return name;
}

/// Measures this machine, each number of threads once, or remembers it.
class LocalSpeeds {
 public:
  LocalSpeeds(const PlannedModel& model, Measure measure)
      : model_(model),
        types_(types_of(model.shape)),
        measure_(measure),
        file_(cluster::default_cache_dir() / "machine-speeds.json") {}

  Result<MachineSpeed> with_threads(std::uint32_t n_threads) {
    if (const auto at = known_.find(n_threads); at != known_.end()) return at->second;
    const cluster::SpeedKey key = key_of(n_threads);
    if (measure_ != Measure::kAlways) {
      if (const auto speed = cluster::load_speed(file_, key)) {
        known_.emplace(n_threads, *speed);
        return *speed;
      }
    }
    if (measure_ == Measure::kNever) {
      return Error{ErrorCode::kNotFound,
                   fmt::format("this machine's speed ({} threads) is not remembered", n_threads)};
    }
    ProgressBar bar("measuring this machine", ProgressBar::Unit::kCount,
                    std::chrono::milliseconds(300));
    bar.update(0, 1, fmt::format("{} threads", n_threads));
    RECUA_ASSIGN_OR_RETURN(const auto device, compute::make_cpu_device({.n_threads = n_threads}));
    RECUA_ASSIGN_OR_RETURN(
        MachineSpeed speed,
        cluster::probe_machine(*device, {.n_threads = n_threads,
                                         .types = types_,
                                         .width = probe_width(model_.shape.hidden_size),
                                         .folder = file_.parent_path()}));
    RECUA_RETURN_IF_ERROR(fit(*device, speed));
    bar.finish();
    known_.emplace(n_threads, speed);
    n_measured_.insert(n_threads);
    // Not remembering costs a second the next time, so it is no failure.
    const auto stored = cluster::store_speed(file_, key, speed);
    stored_ = stored_ && stored.ok();
    return speed;
  }

  /// Before anybody is asked: whether anything is remembered for up to so many threads.
  [[nodiscard]] bool remembers_any(std::uint32_t n_threads_max) const {
    for (std::uint32_t n = 1; n <= n_threads_max; ++n) {
      if (cluster::load_speed(file_, key_of(n))) return true;
    }
    return false;
  }

  /// What to say about it.
  [[nodiscard]] std::string note() const {
    std::string threads;
    for (const auto& [n, speed] : known_)
      threads += fmt::format("{}{}", threads.empty() ? "" : ", ", n);
    if (n_measured_.empty()) {
      return fmt::format(
          "this machine's speed ({} threads) was measured before, --remeasure does "
          "it again",
          threads);
    }
    return fmt::format("this machine's speed ({} threads) was measured just now{}", threads,
                       stored_ ? " and is remembered" : "");
  }

 private:
  [[nodiscard]] cluster::SpeedKey key_of(std::uint32_t n_threads) const {
    return {.host = fmt::format("{}, {}", host_name(), cpu_name()),
            .version = fmt::format("{} {}", version(), build_commit()),
            .n_threads = n_threads,
            .model = model_text()};
  }

  /// Corrects the speed by layers of the model, if there are any.
  Result<void> fit(compute::Device& device, MachineSpeed& speed) const {
    if (model_.file == nullptr) return ok();
    RECUA_ASSIGN_OR_RETURN(
        const auto times,
        cluster::time_layers(device, model_.file, model_.hyperparams,
                             {.k_type = model_.k_type,
                              .v_type = model_.v_type,
                              .memory_bytes_max = sys::memory_info().available_bytes / 4}));
    if (times) speed = cluster::fit_to_layers(std::move(speed), model_.shape, *times);
    return ok();
  }

  /// Models of the same layers share a measurement.
  [[nodiscard]] std::string model_text() const {
    const cluster::ModelShape& shape = model_.shape;
    std::string out = fmt::format(
        "{}{} wide, {}/{} heads of {}, {} inside, {}/{} experts, cache {}/{},",
        model_.file == nullptr ? "described, " : "", shape.hidden_size, shape.n_heads,
        shape.n_kv_heads, shape.head_dim, shape.ffn_size, shape.n_experts_used, shape.n_experts,
        quant::traits(model_.k_type).name, quant::traits(model_.v_type).name);
    for (const quant::DataType type : types_) out += fmt::format(" {}", quant::traits(type).name);
    return out;
  }

  const PlannedModel& model_;
  std::vector<quant::DataType> types_;
  Measure measure_;
  std::filesystem::path file_;
  std::map<std::uint32_t, MachineSpeed> known_;
  std::set<std::uint32_t> n_measured_;
  bool stored_ = true;
};

/// What a worker says of itself.
asio::awaitable<Result<rpc::PeerInfo>> hello(net::Env env, net::Endpoint worker,
                                             net::Duration timeout) {
  auto connection = co_await env.network->connect(worker, timeout);
  if (!connection.ok()) co_return Error(std::move(connection).error());
  rpc::PeerInfo self;
  self.name = "planner";
  self.software_version = version();
  Result<rpc::PeerInfo> info = co_await rpc::client_handshake(env, **connection, self, timeout);
  (*connection)->close();
  co_return info;
}

/// What the links to workers are like, from here; speeds as far as they are this machine's.
class FromHere final : public cluster::Measurements {
 public:
  FromHere(LocalSpeeds& speeds, std::string own_host, std::uint32_t n_cpus)
      : speeds_(speeds), own_host_(std::move(own_host)), n_cpus_(n_cpus) {}

  void add_link(std::optional<LinkSpec> link) { links_.push_back(link); }

  std::optional<MachineSpeed> speed(const cluster::OfferedWorker& worker) override {
    if (worker.host != own_host_) return std::nullopt;  // Nobody measures others yet.
    return measured(worker.n_threads);
  }
  std::optional<MachineSpeed> host_speed(const cluster::OfferedWorker& any,
                                         std::uint32_t n_threads) override {
    if (any.host != own_host_) return std::nullopt;
    return measured(std::min(n_threads, n_cpus_));
  }
  std::optional<LinkSpec> coordinator_link(std::size_t worker) override { return links_[worker]; }
  std::optional<LinkSpec> link(std::size_t, std::size_t) override { return std::nullopt; }
  MachineSpeed assumed_speed(const cluster::OfferedWorker&) override {
    return measured(n_cpus_).value_or(
        MachineSpeed{.bytes_per_second = 1e10, .macs_per_second = 1e11});
  }
  [[nodiscard]] const std::optional<Error>& failure() const { return failure_; }

 private:
  std::optional<MachineSpeed> measured(std::uint32_t n_threads) {
    auto speed = speeds_.with_threads(n_threads);
    if (speed.ok()) return std::move(*speed);
    failure_ = speed.error();
    return std::nullopt;
  }

  LocalSpeeds& speeds_;
  std::string own_host_;
  std::uint32_t n_cpus_;
  std::vector<std::optional<LinkSpec>> links_;
  std::optional<Error> failure_;
};

/// The link that recua would use among the transports that were measured.
std::optional<LinkSpec> link_of(const cluster::LinkReport& report) {
  std::vector<LinkSpec> links;
  for (const cluster::TransportReport& transport : report.transports) {
    if (!transport.available || transport.latency.empty() || !transport.bandwidth) continue;
    links.push_back(
        {.transport = transport.transport,
         .latency_seconds = std::chrono::duration<double>(transport.latency.front().p50).count(),
         .bytes_per_second = transport.bandwidth->bytes_per_second,
         .message_seconds = cluster::typical_message_seconds(transport.transport)});
  }
  return cluster::choose_link(links);
}

/// Asks and measures the workers.
struct Asked {
  std::vector<cluster::OfferedWorker> workers = {};
  std::vector<std::optional<LinkSpec>> links = {};
};

Result<Asked> ask_workers(const ClusterFlags& flags, const LinkFlags& link_flags,
                          const std::string& own_host) {
  // As `recua net test`: what is measured is asked for by name, this end could do everything.
  LinkFlags all = link_flags;
  if (all.rdma_devices.empty() && !all.rdma_gid) all.transports = "auto";
  RECUA_ASSIGN_OR_RETURN(const auto setup, make_link_setup(all));
  RECUA_ASSIGN_OR_RETURN(const auto transports, parse_link_transports(link_flags.transports));
  asio::io_context loop{1};
  net::RealClock clock;
  net::TcpNetwork network(loop.get_executor());
  const net::Env env = real_env(loop, clock, network);
  const auto timeout = std::chrono::duration_cast<net::Duration>(
      std::chrono::duration<double>(flags.timeout_seconds));
  ProgressBar bar("measuring links", ProgressBar::Unit::kCount, std::chrono::milliseconds(300));
  Asked out;
  std::uint64_t n_here = 0;
  for (const net::Endpoint& endpoint : flags.workers) {
    const std::string name = endpoint.to_string();
    bar.update(out.workers.size(), flags.workers.size(), name);
    auto info = run_on(loop, hello(env, endpoint, timeout));
    if (!info.ok()) return std::move(info).error().within("worker " + name);
    cluster::OfferedWorker worker = {.name = name,
                                     .host = info->shared_memory_host,
                                     .memory_bytes = info->memory_free_bytes,
                                     .n_threads = std::max(info->n_threads, 1U)};
    if (worker.host.empty() && is_loopback(endpoint.host)) worker.host = own_host;
    if (worker.host == own_host) ++n_here;
    out.workers.push_back(std::move(worker));

    cluster::ProbeOptions options;
    options.worker = endpoint;
    options.transports = transports;
    options.sizes = {64};
    options.duration = kLinkProbeTime;
    options.policy = &setup->policy;
    options.shared_memory_host = setup->shared_memory_host;
    options.rdma_ports = setup->rdma_ports;
    options.connect_timeout = timeout;
    const auto report = run_on(loop, cluster::probe_link(env, options, [](auto, auto, auto&) {}));
    out.links.push_back(report.ok() ? link_of(*report) : std::nullopt);
  }
  bar.finish();
  // Workers of one host offer the same memory; it is there once. Of other hosts we do not know
  // whether their workers were given parts of it.
  std::uint64_t offered = 0;
  for (const cluster::OfferedWorker& worker : out.workers) {
    if (worker.host == own_host) offered += worker.memory_bytes;
  }
  const std::uint64_t available = sys::memory_info().available_bytes;
  for (cluster::OfferedWorker& worker : out.workers) {
    if (worker.host != own_host || available == 0 || offered <= available) continue;
    worker.memory_bytes = std::min(worker.memory_bytes, available / n_here);
  }
  return out;
}

}  // namespace

PlannedModel planned_model(std::shared_ptr<const gguf::GgufFile> file,
                           const model::HyperParams& hyperparams, quant::DataType k_type,
                           quant::DataType v_type) {
  return {.shape = cluster::model_shape(*file, hyperparams, k_type, v_type),
          .file = std::move(file),
          .hyperparams = hyperparams,
          .k_type = k_type,
          .v_type = v_type};
}

Result<PlannedModel> read_planned_model(const std::string& path, quant::DataType k_type,
                                        quant::DataType v_type) {
  if (path.ends_with(".json")) {
    PlannedModel out = {.k_type = k_type, .v_type = v_type};
    RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(path, cluster::kJsonBytesMax));
    RECUA_ASSIGN_OR_RETURN(out.shape, cluster::parse_model_shape(text, path, k_type, v_type));
    return out;
  }
  RECUA_ASSIGN_OR_RETURN(gguf::GgufFile opened, gguf::GgufFile::open(path));
  auto file = std::make_shared<const gguf::GgufFile>(std::move(opened));
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hyperparams, model::read_hyperparams(*file));
  return planned_model(std::move(file), hyperparams, k_type, v_type);
}

Result<PlanMachines> described_machines(const std::string& path, const LinkFlags& links) {
  RECUA_ASSIGN_OR_RETURN(const auto allowed, parse_link_transports(links.transports));
  RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(path, cluster::kJsonBytesMax));
  PlanMachines out;
  RECUA_ASSIGN_OR_RETURN(out.shape, cluster::parse_cluster(text, path, allowed));
  return out;
}

Result<PlanMachines> measured_machines(const PlannedModel& model, const ClusterFlags& flags,
                                       const LinkFlags& links, std::uint32_t n_threads,
                                       Measure measure) {
  LocalSpeeds speeds(model, measure);
  const sys::Topology topology = sys::detect_topology();
  const auto n_cpus = static_cast<std::uint32_t>(topology.n_cpus);
  if (measure == Measure::kNever && !speeds.remembers_any(n_cpus)) {
    return Error{ErrorCode::kNotFound, "this machine's speed is not remembered"};
  }
  PlanMachines out;
  if (flags.workers.empty()) {
    const auto n = n_threads != 0 ? n_threads
                                  : static_cast<std::uint32_t>(sys::default_thread_count(topology));
    RECUA_ASSIGN_OR_RETURN(MachineSpeed speed, speeds.with_threads(n));
    // A call within the process: no link at all.
    out.shape = cluster::cluster_of({{.name = kPlanHere,
                                      .group = 0,
                                      .host = cluster::kOwnHost,
                                      .memory_bytes = sys::memory_info().available_bytes,
                                      .n_threads = n,
                                      .speed = std::move(speed)}},
                                    {.transport = cluster::LinkTransport::kSharedMemory,
                                     .latency_seconds = 0.0,
                                     .bytes_per_second = 1e12});
    out.notes.push_back(speeds.note());
    return out;
  }
  const auto identity = net::shm::host_identity();
  const std::string own_host = identity.ok() ? std::string(as_text(*identity)) : kLoopback;
  RECUA_ASSIGN_OR_RETURN(const Asked asked, ask_workers(flags, links, own_host));
  FromHere measurements(speeds, own_host, n_cpus);
  for (const auto& link : asked.links) measurements.add_link(link);
  cluster::MeasuredCluster measured = cluster::measured_cluster(asked.workers, measurements);
  if (measurements.failure()) return *measurements.failure();
  out.shape = std::move(measured.shape);
  out.notes = std::move(measured.notes);
  out.notes.insert(out.notes.begin(), speeds.note());
  return out;
}

}  // namespace recua::cli
