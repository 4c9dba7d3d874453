// recua worker: holds slices of models for coordinators.
#include "cluster/worker.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "cli/local_speeds.h"
#include "cli/measured_link.h"
#include "cli/run_loop.h"
#include "cluster/chunks.h"
#include "cluster/offload.h"
#include "compute/cpu/cpu_device.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"
#include "sys/topology.h"
#include "train/train_session.h"

namespace recua::cli {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kConnectTimeout = std::chrono::seconds(5);

struct WorkerFlags {
  std::string listen = "127.0.0.1:7500";
  std::string models_dir;
  std::string cache_dir;
  std::string port_file;
  std::uint32_t n_threads = 0;
  double memory_gib = 0.0;
  bool repack = true;
  CpuFlags cpus;
  LinkFlags links;
};

/// Tells whoever started us where we listen: one line, whole or not there.
Result<void> write_port_file(const std::string& path, const std::string& address) {
  const std::string line = address + "\n";
  if (path.starts_with("/dev/fd/")) {
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) return Error{ErrorCode::kIo, "--port-file: cannot open " + path};
    std::fputs(line.c_str(), file);
    std::fclose(file);
    ::close(std::atoi(path.c_str() + 8));  // So that the reader sees the end.
    return ok();
  }
  return write_file_atomically(path, as_bytes(line));
}

/// What planners ask for. links outlives it.
cluster::Measuring measuring(std::size_t n_threads, std::filesystem::path cache_dir,
                             const LinkSetup& links) {
  const auto speed = [n_threads, file = cache_dir / speeds_file().filename()](
                         cluster::SpeedRequest request) -> Result<cluster::MachineSpeed> {
    if (request.n_threads == 0) request.n_threads = static_cast<std::uint32_t>(n_threads);
    const std::size_t n_cpus = sys::detect_topology().n_cpus;
    if (request.n_threads > std::max(n_cpus, n_threads)) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("measure_speed.n_threads is {}, this machine has {} processors",
                               request.n_threads, n_cpus)};
    }
    return measure_speed(request, file);
  };
  const auto link = [&links](const net::Endpoint& peer,
                             std::span<const cluster::LinkTransport> allowed) {
    return measure_link(links, peer, allowed, kConnectTimeout);
  };
  return {.speed = speed, .link = link};
}

Result<void> run_worker(const WorkerFlags& flags) {
  auto parsed = net::Endpoint::parse(flags.listen, kDefaultWorkerPort);
  if (!parsed.ok()) return std::move(parsed).error().within("--listen");
  const net::Endpoint endpoint = std::move(parsed).value();
  if (std::error_code error;
      !flags.models_dir.empty() && !std::filesystem::is_directory(flags.models_dir, error)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--models is '{}', which is no folder here; leave it out to fetch "
                             "everything from coordinators",
                             flags.models_dir)};
  }
  if (!(flags.memory_gib >= 0.0) || flags.memory_gib > 1e6) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("--memory is {}, need a number of GiB (0: what is free)", flags.memory_gib)};
  }
  RECUA_ASSIGN_OR_RETURN(const sys::Placement placement, flags.cpus.place(flags.n_threads));
  const std::size_t n_threads = placement.n_threads;
  const compute::CpuDeviceOptions device_options{
      .n_threads = n_threads, .repack = flags.repack, .cpus = placement.cpus};
  RECUA_ASSIGN_OR_RETURN(const auto probe, compute::make_cpu_device(device_options));

  RECUA_ASSIGN_OR_RETURN(const std::unique_ptr<LinkSetup> links, make_link_setup(flags.links));

  asio::io_context loop{1};
  net::RealClock clock;
  net::TcpNetwork network(loop.get_executor());
  const net::Env env = real_env(loop, clock, network);
  RECUA_ASSIGN_OR_RETURN(const std::unique_ptr<net::Listener> listener, network.listen(endpoint));

  cluster::ThreadOffload offload(2);
  cluster::WorkerOptions options;
  options.name = listener->endpoint().to_string();
  options.models_dir = flags.models_dir;
  options.cache_dir =
      flags.cache_dir.empty() ? cluster::default_cache_dir().string() : flags.cache_dir;
  options.n_threads = n_threads;
  options.memory_bytes = static_cast<std::uint64_t>(flags.memory_gib * 1024 * 1024 * 1024);
  options.link_policy = &links->policy;
  options.shared_memory_host = links->shared_memory_host;
  options.rdma_ports = links->rdma_ports;
  options.make_training = train::training_factory(n_threads);
  options.measuring = measuring(n_threads, options.cache_dir, *links);
  cluster::Worker worker(
      env, offload, [device_options] { return compute::make_cpu_device(device_options); }, options);

  // Before it says that it listens: whoever reads that may end it at once.
  asio::signal_set signals(loop, SIGINT, SIGTERM);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    log_info("stopping");
    signals.clear();  // A second one ends us at once.
    worker.stop();
    listener->close();
  });

  log_info("{}", probe->description());
  log_info("listening on {}", listener->endpoint().to_string());
  if (!is_loopback(endpoint.host)) {
    log_warning(
        "connections are not encrypted and peers are not authenticated yet: whoever reaches {} "
        "can use this worker; keep it on a trusted network",
        listener->endpoint().to_string());
  }
  if (!flags.port_file.empty()) {
    RECUA_RETURN_IF_ERROR(write_port_file(flags.port_file, listener->endpoint().to_string()));
  }
  Result<void> served = ok();
  asio::co_spawn(loop, worker.serve(*listener), [&](std::exception_ptr, Result<void> result) {
    served = std::move(result);
    signals.cancel();
  });
  loop.run();
  return served;
}

}  // namespace

void register_worker(CLI::App& app, int& exit_code) {
  const auto flags = std::make_shared<WorkerFlags>();
  CLI::App* sub = app.add_subcommand("worker", "Hold slices of models for coordinators");
  sub->add_option("--listen", flags->listen,
                  "Where to listen; [::1]:7500 for IPv6, :7500 for all addresses, port 0 for any")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  sub->add_option("--models", flags->models_dir,
                  "Folder with own copies of model files, found by name and verified by hash")
      ->type_name("DIR");
  sub->add_option("--cache-dir", flags->cache_dir,
                  "Where fetched weights are kept (default: recua in the user's cache folder)")
      ->type_name("DIR");
  sub->add_option("-t,--threads", flags->n_threads, "Threads (default: one per physical core)")
      ->type_name("N");
  sub->add_option("--memory", flags->memory_gib, "Most memory to use (default: what is free)")
      ->type_name("GIB");
  flags->cpus.add(*sub);
  add_no_repack(*sub, flags->repack);
  sub->add_option("--port-file", flags->port_file,
                  "Write HOST:PORT there once connections are accepted, for scripts")
      ->type_name("FILE");
  flags->links.add(*sub);
  sub->footer(
      "Examples:\n"
      "  recua worker --listen 0.0.0.0:7500 --models /srv/models\n"
      "  recua worker --listen [::1]:7501 -t 8\n"
      "  recua run -m model.gguf --workers box1:7500,box2:7500 -p \"Hello\"   (on the "
      "coordinator)");
  sub->callback([flags, &exit_code] {
    show_info_lines();
    const Result<void> result = run_worker(*flags);
    exit_code = result.ok() ? kExitOk : report(result.error());
  });
}

}  // namespace recua::cli
