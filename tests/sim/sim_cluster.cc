#include "sim_cluster.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "compute/cpu/cpu_device.h"

namespace recua {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;

net::SimOptions network_options(std::uint64_t seed) {
  net::SimOptions options;
  options.seed = seed;
  return options;
}

fs::path make_scratch() {
  std::string name = (fs::temp_directory_path() / "recua-sim-XXXXXX").string();
  RECUA_CHECK(::mkdtemp(name.data()) != nullptr);
  return name;
}

}  // namespace

std::unique_ptr<SimCluster::Links> SimCluster::make_links(const std::string& host, int number) {
  auto links = std::make_unique<Links>();
  if (!options_.rdma) return links;
  fabric_.add_device(host, "card_" + host, {"10.0.0." + std::to_string(number)});
  links->provider = fabric_.provider(host);
  links->policy.allow_rdma = true;
  links->policy.provider = links->provider.get();
  return links;
}

SimCluster::SimCluster(const SimClusterOptions& options)
    : options_(options),
      scratch_(make_scratch()),
      network_(loop_, network_options(options.seed)),
      offload_(loop_.executor()) {
  auto opened = gguf::GgufFile::open(options.model);
  RECUA_CHECK(opened.ok());
  file_ = std::make_shared<const gguf::GgufFile>(std::move(*opened));
  home_links_ = make_links("home", 1);
  for (int i = 0; i < options.n_workers; ++i) {
    auto box = std::make_unique<Box>();
    box_links_.push_back(make_links(worker_name(static_cast<std::size_t>(i)), i + 2));
    net::Env env = network_.env(worker_name(static_cast<std::size_t>(i)));
    env.spin = net::Duration::zero();
    const net::Endpoint endpoint{.host = worker_name(static_cast<std::size_t>(i)), .port = kPort};
    auto listener = env.network->listen(endpoint);
    RECUA_CHECK(listener.ok());
    box->listener = std::move(*listener);
    cluster::WorkerOptions worker_options;
    worker_options.name = worker_name(static_cast<std::size_t>(i));
    if (options.workers_have_file) worker_options.models_dir = options.model.parent_path();
    worker_options.cache_dir = scratch_ / worker_options.name;
    worker_options.memory_bytes = options.worker_memory_bytes;
    if (options.rdma) worker_options.link_policy = &box_links_.back()->policy;
    box->worker = std::make_unique<cluster::Worker>(
        env, offload_, [] { return compute::make_cpu_device({.n_threads = 1}); }, worker_options);
    asio::co_spawn(loop_.executor(), box->worker->serve(*box->listener), asio::detached);
    workers_.push_back(std::move(box));
  }
}

SimCluster::~SimCluster() {
  cluster_.reset();
  for (const auto& box : workers_) {
    box->worker->stop();
    box->listener->close();
  }
  loop_.run_for(std::chrono::seconds(20));  // Whatever still ends, ends.
  fs::remove_all(scratch_);
}

Result<void> SimCluster::open(net::Network* network) {
  net::Env env = network_.env("home");
  if (network != nullptr) env.network = network;
  env.spin = net::Duration::zero();
  cluster::ClusterOptions options;
  for (int i = 0; i < options_.n_workers; ++i) {
    options.workers.push_back({.host = worker_name(static_cast<std::size_t>(i)), .port = kPort});
  }
  options.cache_dir = scratch_ / "home";
  options.push_chunks = options_.push_chunks;
  if (options_.rdma) options.link_policy = &home_links_->policy;
  const model::SliceOptions slice_options{.n_ctx = 512,
                                          .n_pages = 16,
                                          .page_tokens = 32,
                                          .n_ubatch = options_.n_ubatch,
                                          .k_type = quant::DataType::kF32,
                                          .v_type = quant::DataType::kF32};
  auto opened = loop_.run(cluster::open_cluster(env, offload_, file_, slice_options, options, {}));
  if (!opened.ok()) return Error(opened.error());
  cluster_ = std::move(*opened);
  return ok();
}

Result<model::StepResult> SimCluster::step(model::StepBatch batch) {
  return loop_.run(cluster_->executor().step(std::move(batch)));
}

model::StepBatch prompt_step(const std::vector<model::TokenId>& tokens, std::uint32_t position,
                             std::uint32_t page_tokens, model::OutputRequest::Kind kind) {
  const auto n = static_cast<std::uint32_t>(tokens.size());
  model::StepBatch batch;
  model::SequencePart part{.seq = 0, .position = position, .tokens = tokens};
  for (std::uint32_t page = (position + page_tokens - 1) / page_tokens;
       page < (position + n + page_tokens - 1) / page_tokens; ++page) {
    part.new_pages.push_back(page);
  }
  batch.parts.push_back(std::move(part));
  model::OutputRequest request{.row = n - 1, .kind = kind};
  request.sampling.temperature = 0;
  batch.outputs.push_back(request);
  return batch;
}

Result<std::vector<model::TokenId>> SimCluster::generate(const std::vector<model::TokenId>& prompt,
                                                         int n,
                                                         const std::function<void(int)>& before) {
  std::vector<model::TokenId> out;
  std::vector<model::TokenId> next = prompt;
  std::uint32_t position = 0;
  for (int i = 0; i < n; ++i) {
    if (before) before(i);
    model::StepBatch batch = prompt_step(next, position, cluster_->executor().info().page_tokens,
                                         model::OutputRequest::Kind::kSample);
    position += static_cast<std::uint32_t>(next.size());
    RECUA_ASSIGN_OR_RETURN(const model::StepResult result, step(std::move(batch)));
    out.push_back(result.outputs.at(0).id);
    next = {out.back()};
  }
  return out;
}

Result<std::vector<float>> SimCluster::logits(const std::vector<model::TokenId>& tokens) {
  RECUA_ASSIGN_OR_RETURN(model::StepResult result,
                         step(prompt_step(tokens, 0, cluster_->executor().info().page_tokens,
                                          model::OutputRequest::Kind::kLogits)));
  return std::move(result.outputs.at(0).logits);
}

void SimCluster::close() {
  const auto close_it = [](cluster::Cluster& cluster) -> asio::awaitable<bool> {
    co_await cluster.close();
    co_return true;
  };
  RECUA_CHECK(loop_.run(close_it(*cluster_)));
  links_ = cluster_->links();
  cluster_.reset();
}

}  // namespace recua
