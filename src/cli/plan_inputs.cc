#include "cli/plan_inputs.h"

#include <algorithm>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "cli/build_info.h"
#include "cli/local_speeds.h"
#include "cli/measured_link.h"
#include "cli/net_report.h"
#include "cli/progress.h"
#include "cli/run_loop.h"
#include "cluster/cluster_file.h"
#include "cluster/json_fields.h"
#include "cluster/measurements.h"
#include "cluster/survey.h"
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

constexpr const char* kLoopback = "this host";

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

/// What the workers told, and what was measured.
struct Asked {
  std::vector<cluster::OfferedWorker> workers = {};
  std::vector<std::optional<LinkSpec>> links = {};  // From here.
  cluster::Survey survey = {};
};

/// Speeds of workers on this host are this machine's, all others what they have measured.
class Figures final : public cluster::Measurements {
 public:
  /// Both outlive this.
  Figures(LocalSpeeds& speeds, const Asked& asked, std::string own_host, std::uint32_t n_cpus)
      : speeds_(speeds), asked_(asked), own_host_(std::move(own_host)), n_cpus_(n_cpus) {}

  std::optional<MachineSpeed> speed(std::size_t worker) override {
    const cluster::OfferedWorker& own = asked_.workers[worker];
    if (own.host == own_host_) return taken(speeds_.with_threads(own.n_threads));
    if (worker >= asked_.survey.speeds.size() || !asked_.survey.speeds[worker]) return std::nullopt;
    return taken(speeds_.with_layers(*asked_.survey.speeds[worker], n_cpus_));
  }
  std::optional<MachineSpeed> host_speed(const std::string& host,
                                         std::uint32_t n_threads) override {
    if (host == own_host_) return taken(speeds_.with_threads(std::min(n_threads, n_cpus_)));
    const auto found = asked_.survey.hosts.find(host);
    if (found == asked_.survey.hosts.end()) return std::nullopt;
    return taken(speeds_.with_layers(found->second, n_cpus_));
  }
  std::optional<LinkSpec> coordinator_link(std::size_t worker) override {
    return asked_.links[worker];
  }
  std::optional<LinkSpec> link(std::size_t a, std::size_t b) override {
    const auto found = asked_.survey.links.find({std::min(a, b), std::max(a, b)});
    if (found == asked_.survey.links.end()) return std::nullopt;
    return found->second;
  }
  MachineSpeed assumed_speed(std::size_t) override {
    return taken(speeds_.with_threads(n_cpus_))
        .value_or(MachineSpeed{.bytes_per_second = 1e10, .macs_per_second = 1e11});
  }
  [[nodiscard]] const std::optional<Error>& failure() const { return failure_; }

 private:
  std::optional<MachineSpeed> taken(Result<MachineSpeed> speed) {
    if (speed.ok()) return std::move(*speed);
    failure_ = speed.error();
    return std::nullopt;
  }

  LocalSpeeds& speeds_;
  const Asked& asked_;
  std::string own_host_;
  std::uint32_t n_cpus_;
  std::optional<Error> failure_;
};

/// Workers of one host offer the same memory; it is there once. Of other hosts we do not know
/// whether their workers were given parts of it.
void share_own_memory(std::vector<cluster::OfferedWorker>& workers, const std::string& own_host) {
  std::uint64_t offered = 0;
  std::uint64_t n_here = 0;
  for (const cluster::OfferedWorker& worker : workers) {
    if (worker.host != own_host) continue;
    offered += worker.memory_bytes;
    ++n_here;
  }
  const std::uint64_t available = sys::memory_info().available_bytes;
  if (available == 0 || offered <= available) return;
  for (cluster::OfferedWorker& worker : workers) {
    if (worker.host != own_host) continue;
    worker.memory_bytes = std::min(worker.memory_bytes, available / n_here);
  }
}

/// They also measure what nobody remembers of `survey`.
Result<Asked> ask_workers(const ClusterFlags& flags, const LinkFlags& link_flags,
                          const std::string& own_host, const cluster::SpeedRequest& survey) {
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
  const std::size_t n_parts = flags.workers.size() + 1;
  Asked out;
  for (const net::Endpoint& endpoint : flags.workers) {
    const std::string name = endpoint.to_string();
    bar.update(out.workers.size(), n_parts, name);
    auto info = run_on(loop, hello(env, endpoint, timeout));
    if (!info.ok()) return std::move(info).error().within("worker " + name);
    cluster::OfferedWorker worker = {.name = name,
                                     .host = info->shared_memory_host,
                                     .memory_bytes = info->memory_free_bytes,
                                     .n_threads = std::max(info->n_threads, 1U)};
    if (worker.host.empty() && is_loopback(endpoint.host)) worker.host = own_host;
    out.workers.push_back(std::move(worker));
    const auto link = measure_link(*setup, endpoint, transports, timeout);
    out.links.push_back(link.ok() ? std::optional(*link) : std::nullopt);
  }
  bar.update(out.workers.size(), n_parts, "workers among themselves");
  cluster::SurveyOptions options{.endpoints = flags.workers,
                                 .workers = out.workers,
                                 .own_host = own_host,
                                 .speed = survey,
                                 .transports = transports,
                                 .connect_timeout = timeout};
  out.survey = run_on(loop, cluster::survey_workers(env, std::move(options)));
  bar.finish();
  share_own_memory(out.workers, own_host);
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
  cluster::SpeedRequest survey = speed_request(model.shape);
  survey.again = measure == Measure::kAlways;
  RECUA_ASSIGN_OR_RETURN(const Asked asked, ask_workers(flags, links, own_host, survey));
  Figures measurements(speeds, asked, own_host, n_cpus);
  cluster::MeasuredCluster measured = cluster::measured_cluster(asked.workers, measurements);
  if (measurements.failure()) return *measurements.failure();
  out.shape = std::move(measured.shape);
  out.notes = std::move(measured.notes);
  out.notes.insert(out.notes.begin(), speeds.note());
  if (asked.survey.n_speeds() > 0) {
    out.notes.push_back(fmt::format(
        "{} of the workers have measured themselves, or remember it; the share of small "
        "operators is this machine's",
        asked.survey.n_speeds()));
  }
  out.notes.insert(out.notes.end(), asked.survey.notes.begin(), asked.survey.notes.end());
  return out;
}

}  // namespace recua::cli
