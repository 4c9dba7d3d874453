#include "cluster/coordinator.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "cluster/coordinator_impl.h"
#include "cluster/run_all.h"
#include "cluster/stage.h"
#include "model/lora.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kCloseTimeout = std::chrono::seconds(2);

/// Rows of a micro-batch whose description surely fits a message.
constexpr std::uint32_t kMicroBatchMax = 16384;

/// What the caller owns: drops the connections when it goes, whoever else still holds the rest.
class ClusterHandle final : public Cluster {
 public:
  explicit ClusterHandle(std::shared_ptr<ClusterImpl> impl) : impl_(std::move(impl)) {}
  ~ClusterHandle() override { impl_->disconnect(); }
  RemoteExecutor& executor() override { return impl_->executor(); }
  const Plan& plan() const override { return impl_->plan(); }
  const SourceCounts& sources() const override { return impl_->sources(); }
  std::vector<rpc::LinkStats> links() const override { return impl_->links(); }
  asio::awaitable<void> close() override { return impl_->close(); }

 private:
  std::shared_ptr<ClusterImpl> impl_;
};

}  // namespace

ClusterImpl::ClusterImpl(net::Env env, Offload& offload, std::shared_ptr<const gguf::GgufFile> file,
                         model::SliceOptions slice_options, ClusterOptions options,
                         ClusterProgress progress)
    : env_(std::move(env)),
      offload_(offload),
      file_(std::move(file)),
      slice_options_(slice_options),
      options_(std::move(options)),
      progress_(std::move(progress)) {
  id_ = {.session = env_.random(), .epoch = 1};
  secret_ = rpc::make_secret(env_);
  self_.name = "coordinator";
  self_.software_version = RECUA_VERSION;
  if (!options_.push_chunks) {
    std::erase(self_.features, static_cast<std::uint32_t>(rpc::Feature::kPushChunks));
  }
  if (options_.n_ranks > 1) {
    self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTensorSplit));
    self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kGroupOptions));
  }
  if (model::has_lora(*file_)) {
    self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kLora));
  }
  self_.shared_memory_host = options_.shared_memory_host;
  self_.rdma_ports = options_.rdma_ports;
}

asio::awaitable<Result<void>> ClusterImpl::open() {
  const auto self = shared_from_this();
  RECUA_CO_ASSIGN_OR_RETURN(hyperparams_, model::read_hyperparams(*file_));
  slice_options_.n_ubatch = std::min(slice_options_.n_ubatch, kMicroBatchMax);
  n_logit_rows_ = logit_rows_per_message(hyperparams_.vocab_size, slice_options_.n_ubatch);
  slice_options_.n_logit_rows = slice_options_.n_ubatch;  // Outputs of any kind in a micro-batch.
  for (const net::Endpoint& endpoint : options_.workers) {
    Peer peer;
    peer.endpoint = endpoint;
    peer.name = endpoint.to_string();
    peers_.push_back(std::move(peer));
  }
  using Task = asio::awaitable<Result<void>>;
  std::vector<Task> connects;
  for (std::size_t i = 0; i < peers_.size(); ++i) connects.push_back(connect(i));
  Result<void> result = co_await run_all(env_.executor, std::move(connects));
  if (!result.ok()) co_return result;
  result = co_await make_plan();
  if (!result.ok()) co_return result;
  result = co_await hash();
  if (!result.ok()) co_return result;
  std::vector<Task> loads;
  for (std::size_t i = 0; i < peers_.size(); ++i) loads.push_back(load(i));
  result = co_await run_all(env_.executor, std::move(loads));
  if (!result.ok()) co_return failure_.has_value() ? Result<void>(*failure_) : result;
  result = co_await open_channels();
  if (!result.ok()) co_return failure_.has_value() ? Result<void>(*failure_) : result;
  co_return ok();
}

asio::awaitable<Result<void>> ClusterImpl::make_plan() {
  RECUA_CO_ASSIGN_OR_RETURN(const ModelCost cost, model_cost(*file_, hyperparams_, slice_options_));
  // Several workers on one machine share its memory; they say so by the same free amount only, so a
  // plan may still be refused by a worker when it loads.
  for (const Peer& peer : peers_) {
    offers_.push_back({.name = peer.name, .memory_bytes = peer.info.memory_free_bytes});
  }
  std::vector<LinkBook::Worker> workers;
  for (const Peer& peer : peers_) {
    workers.push_back({.name = peer.name, .reports = peer.info.has(rpc::Feature::kLinks)});
  }
  links_.set_workers(std::move(workers), options_.n_ranks);
  const auto part_bytes = [&](const model::Slice& slice) {
    std::uint64_t bytes = 0;
    for (const gguf::TensorInfo& tensor : file_->tensors()) {
      bytes += model::slice_bytes(hyperparams_, slice, is_tied(), tensor);
    }
    return bytes;
  };
  RECUA_CO_ASSIGN_OR_RETURN(
      plan_,
      options_.slices.empty()
          ? plan_ranks(cost, hyperparams_, offers_, options_.n_ranks, options_.split, part_bytes)
          : plan_as_told(cost, hyperparams_, offers_, options_.slices, part_bytes));
  // What older workers cannot do. An adapter they would leave away without a word.
  const struct {
    bool needed;
    rpc::Feature feature;
    std::string_view what;
  } needs[] = {{n_ranks() > 1, rpc::Feature::kTensorSplit,
                "share layers with others (--tp; --plan layers does without)"},
               {n_ranks() > 1 && options_.sums != collective::WireFormat::kF32,
                rpc::Feature::kGroupOptions, "round what it sends (--sum-type)"},
               {model::has_lora(*file_), rpc::Feature::kLora, "apply an adapter (--lora)"}};
  for (const Peer& peer : peers_) {
    for (const auto& [needed, feature, what] : needs) {
      if (!needed || peer.info.has(feature)) continue;
      co_return Error{
          ErrorCode::kUnsupported,
          fmt::format("worker {} runs recua {}, which cannot {}: update it (this is {})", peer.name,
                      peer.info.software_version, what, RECUA_VERSION)};
    }
  }
  log_debug("{}", describe(plan_, offers_));
  co_return ok();
}

void ClusterImpl::lost(const Error& error) {
  if (failure_.has_value()) return;
  failure_ = error;
  log_debug("{}", error.message);
  if (executor_ != nullptr) {
    executor_->fail(error);
  } else {
    disconnect();  // Whatever still loads or waits ends.
  }
}

void ClusterImpl::disconnect() {
  for (Peer& peer : peers_) {
    if (peer.chunks != nullptr) peer.chunks->close();
    if (peer.control != nullptr) peer.control->close();
  }
}

asio::awaitable<void> ClusterImpl::close() {
  const auto self = shared_from_this();
  std::vector<asio::awaitable<Result<void>>> tasks;
  const auto close_one = [](std::shared_ptr<ClusterImpl> impl,
                            std::size_t index) -> asio::awaitable<Result<void>> {
    wire::ControlMessage request;
    request.mutable_close_session()->set_session(impl->id_.session);
    const Result<wire::ControlMessage> reply =
        co_await impl->call(index, std::move(request), kCloseTimeout);
    if (!reply.ok()) {
      log_debug("{}", reply.error().message);
    } else if (reply->has_session_closed()) {
      impl->links_.add(index, reply->session_closed());
    }
    co_return ok();
  };
  if (executor_ != nullptr && !failure_.has_value()) {
    const auto n_workers = static_cast<std::uint32_t>(peers_.size());
    const RemoteExecutor& ends = *executor_;
    for (std::uint32_t i = 0; i < ends.n_firsts(); ++i) {
      links_.add_own(i, true, ends.first(i).transport(), ends.first(i).counters());
    }
    links_.add_own(n_workers, false, ends.last().transport(), ends.last().counters());
  }
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (peers_[i].control != nullptr && !peers_[i].control->lost()) {
      tasks.push_back(close_one(self, i));
    }
  }
  // From here on a closing channel is expected, not a failure.
  if (!failure_.has_value()) failure_ = Error{ErrorCode::kCancelled, "the cluster was closed"};
  const Result<void> closed = co_await run_all(env_.executor, std::move(tasks));
  if (!closed.ok()) log_debug("{}", closed.error().message);
  disconnect();
}

asio::awaitable<Result<std::unique_ptr<Cluster>>> open_cluster(
    net::Env env, Offload& offload, std::shared_ptr<const gguf::GgufFile> file,
    model::SliceOptions slice_options, ClusterOptions options, ClusterProgress progress) {
  const auto impl =
      std::make_shared<ClusterImpl>(std::move(env), offload, std::move(file), slice_options,
                                    std::move(options), std::move(progress));
  const Result<void> opened = co_await impl->open();
  if (!opened.ok()) {
    impl->disconnect();
    co_return Error(opened.error());
  }
  co_return std::unique_ptr<Cluster>(std::make_unique<ClusterHandle>(impl));
}

}  // namespace recua::cluster
