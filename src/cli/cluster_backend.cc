#include "cli/cluster_backend.h"

#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/local_workers.h"
#include "cli/run_loop.h"
#include "cluster/coordinator.h"
#include "cluster/offload.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

namespace asio = boost::asio;

/// The executor of a cluster, with everything that has to live as long.
class ClusterExecutor final : public model::Executor {
 public:
  explicit ClusterExecutor(asio::io_context& loop) : loop_(loop), offload_(1) {}
  ~ClusterExecutor() override {
    close();
    cluster_.reset();
    loop_.restart();
    loop_.poll();  // What still waits on the channels sees that they are gone, and ends.
    // Channels for weights end on threads of their own, and tell the loop, which goes after us.
    while (offload_.n_stage_loops() > 0 && loop_.run_one() > 0) {
    }
  }

  /// Once; what both ends of all links did.
  std::vector<rpc::LinkStats> close() {
    if (cluster_ == nullptr || std::exchange(closed_, true)) return {};
    const rpc::ChannelCounters& sent = cluster_->executor().sent();
    const rpc::ChannelCounters& received = cluster_->executor().received();
    log_debug(
        "links: sent {} messages, {} bytes, {} system calls, {} copies, {} sleeps; received {} "
        "messages, {} bytes, {} system calls, {} copies, {} sleeps",
        sent.messages, sent.bytes, sent.system_calls, sent.payload_copies, sent.sleeps,
        received.messages, received.bytes, received.system_calls, received.payload_copies,
        received.sleeps);
    const auto close_it = [](cluster::Cluster& cluster) -> asio::awaitable<bool> {
      co_await cluster.close();
      co_return true;
    };
    run_on(loop_, close_it(*cluster_));
    std::vector<rpc::LinkStats> links = cluster_->links();
    for (const rpc::LinkStats& link : links) {
      std::string line = fmt::format("link {}->{}, {}: {}", link.from, link.to,
                                     link.sends ? "sender" : "receiver", link.transport);
      for (const rpc::CounterField& field : rpc::counter_fields()) {
        fmt::format_to(std::back_inserter(line), ", {} {}", link.counters.*field.value, field.name);
      }
      log_debug("{}", line);
    }
    return links;
  }

  Result<void> open(const net::Env& env, const ClusterFlags& flags, const LinkFlags& link_flags,
                    const LinkSetup& links, std::shared_ptr<gguf::GgufFile> file,
                    const model::SliceOptions& options, const ModelFlags& model,
                    const model::LoadProgress& progress) {
    cluster::ClusterOptions cluster_options;
    cluster_options.workers = flags.workers;
    if (flags.n_local_workers > 0) {
      const std::filesystem::path path = file->name();
      std::vector<std::string> arguments = link_flags.arguments();
      if (!model.repack) arguments.emplace_back("--no-repack");
      RECUA_ASSIGN_OR_RETURN(local_, LocalWorkers::start(flags.n_local_workers, path.parent_path(),
                                                         model.n_threads, arguments));
      cluster_options.workers = local_.endpoints();
    }
    cluster_options.split.assign(flags.split.begin(), flags.split.end());
    cluster_options.n_ranks = flags.n_ranks;
    cluster_options.slices = flags.slices;
    cluster_options.n_batch = model.n_batch;
    cluster_options.fetch_allowed = flags.fetch;
    cluster_options.verify = flags.verify;
    cluster_options.sums = flags.sums;
    cluster_options.cache_dir = cluster::default_cache_dir();
    cluster_options.n_threads = sys::default_thread_count(sys::detect_topology());
    cluster_options.link_policy = &links.policy;
    cluster_options.shared_memory_host = links.shared_memory_host;
    cluster_options.rdma_ports = links.rdma_ports;
    cluster_options.connect_timeout = std::chrono::duration_cast<net::Duration>(
        std::chrono::duration<double>(flags.timeout_seconds));
    cluster::ClusterProgress cluster_progress;
    if (progress) cluster_progress.loading = progress;
    Result<std::unique_ptr<cluster::Cluster>> opened =
        run_on(loop_, cluster::open_cluster(env, offload_, std::move(file), options,
                                            std::move(cluster_options), cluster_progress));
    if (!opened.ok()) {
      return flags.is_plan_named() ? std::move(opened).error().within(flags.plan_file)
                                   : std::move(opened).error();
    }
    cluster_ = std::move(*opened);
    return ok();
  }

  [[nodiscard]] const model::ExecutorInfo& info() const override {
    return cluster_->executor().info();
  }
  asio::awaitable<Result<model::StepResult>> step(model::StepBatch batch) override {
    return cluster_->executor().step(std::move(batch));
  }

 private:
  asio::io_context& loop_;
  LocalWorkers local_;  // Ends after the cluster was closed.
  cluster::ThreadOffload offload_;
  std::unique_ptr<cluster::Cluster> cluster_;
  bool closed_ = false;
};

}  // namespace

Result<ClusterBackend> connect_cluster(net::Env& env, asio::io_context& loop,
                                       const ClusterFlags& flags, const LinkFlags& link_flags,
                                       const LinkSetup& links, std::shared_ptr<gguf::GgufFile> file,
                                       const model::SliceOptions& options, const ModelFlags& model,
                                       const model::LoadProgress& progress) {
  // Which link runs on what, and who holds what, is said once at the start.
  show_info_lines();
  auto executor = std::make_unique<ClusterExecutor>(loop);
  RECUA_RETURN_IF_ERROR(
      executor->open(env, flags, link_flags, links, std::move(file), options, model, progress));
  ClusterBackend out;
  out.close = [raw = executor.get()] { return raw->close(); };
  out.executor = std::move(executor);
  return out;
}

}  // namespace recua::cli
