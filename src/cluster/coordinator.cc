#include "cluster/coordinator.h"

#include <algorithm>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/chunk_server.h"
#include "cluster/link_book.h"
#include "cluster/rank_group.h"
#include "cluster/ring_buffer.h"
#include "cluster/run_all.h"
#include "cluster/stage.h"
#include "cluster/weights_channel.h"
#include "cluster/wire.h"
#include "model/hyperparams.h"
#include "model/lora.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// Loading ends by the worker's answer or by its loss, which heartbeats notice; this is for a
/// worker that lives and does nothing.
constexpr net::Duration kLoadTimeout = std::chrono::hours(12);
constexpr net::Duration kCallTimeout = std::chrono::seconds(30);
constexpr net::Duration kCloseTimeout = std::chrono::seconds(2);
constexpr net::Duration kSettleSlack = std::chrono::seconds(5);

/// Of what a worker has to say about its loading.
constexpr int kNotesMax = 4;
constexpr std::size_t kNoteBytesMax = 1024;

/// Rows of a micro-batch whose description surely fits a message.
constexpr std::uint32_t kMicroBatchMax = 16384;

/// One worker as the coordinator sees it.
struct Peer {
  net::Endpoint endpoint;
  std::string name;  // "b:7500"
  rpc::PeerInfo info;
  std::unique_ptr<rpc::ControlConnection> control;
  std::unique_ptr<ChunkServer> chunks;  // From the time when it loads.
  bool weights_asked = false;           // For a channel, once.
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;
};

/// A channel of the coordinator's own after its handshake.
struct OpenedChannel {
  std::unique_ptr<net::Connection> connection;
  rpc::ChannelHandshake agreed;
};

class ClusterImpl final : public Cluster, public std::enable_shared_from_this<ClusterImpl> {
 public:
  ClusterImpl(net::Env env, Offload& offload, std::shared_ptr<const gguf::GgufFile> file,
              model::SliceOptions slice_options, ClusterOptions options, ClusterProgress progress)
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
    }
    if (model::has_lora(*file_)) {
      self_.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kLora));
    }
    self_.shared_memory_host = options_.shared_memory_host;
    self_.rdma_ports = options_.rdma_ports;
  }

  asio::awaitable<Result<void>> open();
  void disconnect() {
    for (Peer& peer : peers_) {
      if (peer.chunks != nullptr) peer.chunks->close();
      if (peer.control != nullptr) peer.control->close();
    }
  }

  RemoteExecutor& executor() override { return *executor_; }
  const Plan& plan() const override { return plan_; }
  const SourceCounts& sources() const override { return sources_; }
  std::vector<rpc::LinkStats> links() const override { return links_.stats(); }
  asio::awaitable<void> close() override;

 private:
  asio::awaitable<Result<void>> connect(std::size_t index);
  asio::awaitable<Result<void>> make_plan();
  asio::awaitable<Result<void>> hash();
  asio::awaitable<Result<void>> load(std::size_t index);
  asio::awaitable<Result<void>> open_channels();
  asio::awaitable<Result<void>> link(std::size_t from, std::size_t to, std::uint32_t number);
  [[nodiscard]] std::vector<asio::awaitable<Result<void>>> plan_links();
  [[nodiscard]] std::size_t n_ranks() const { return options_.n_ranks; }
  [[nodiscard]] bool is_tied() const { return file_->find("output.weight") == nullptr; }
  asio::awaitable<Result<void>> start(std::size_t index);
  asio::awaitable<Result<wire::ControlMessage>> call(std::size_t index,
                                                     wire::ControlMessage request,
                                                     net::Duration timeout);
  asio::awaitable<Result<OpenedChannel>> channel_to(std::size_t index, rpc::ChannelRequest request);
  rpc::LinkContext link_context(std::uint32_t number, bool sends);
  asio::awaitable<Result<wire::ControlMessage>> answer(std::size_t index,
                                                       wire::ControlMessage request);
  asio::awaitable<Result<wire::ControlMessage>> open_weights(std::size_t index,
                                                             wire::OpenWeights request);
  /// The link itself gives up a transport in its own time; this only catches one that does not.
  [[nodiscard]] net::Duration settle_timeout() const {
    const rpc::LinkPolicy policy;
    const net::Duration own = options_.link_policy == nullptr
                                  ? policy.settle_timeout
                                  : options_.link_policy->settle_timeout;
    return own + kSettleSlack;
  }
  void take_notice(std::size_t index, const wire::ControlMessage& notice);
  void lost(const Error& error);

  net::Env env_;
  Offload& offload_;
  std::shared_ptr<const gguf::GgufFile> file_;
  model::SliceOptions slice_options_;
  ClusterOptions options_;
  ClusterProgress progress_;
  rpc::PeerInfo self_;
  rpc::ChannelId id_;
  rpc::Secret secret_{};
  model::HyperParams hyperparams_;
  std::uint32_t n_logit_rows_ = 1;
  std::vector<TensorSpec> tensors_;
  std::vector<WorkerOffer> offers_;
  Plan plan_;
  SourceCounts sources_;
  std::vector<Peer> peers_;
  std::optional<Error> failure_;
  LinkBook links_;
  std::unique_ptr<RemoteExecutor> executor_;
};

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

asio::awaitable<Result<void>> ClusterImpl::connect(std::size_t index) {
  const auto self = shared_from_this();
  Peer& peer = peers_[index];
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(peer.endpoint, options_.connect_timeout);
  if (!connection.ok()) {
    co_return Error{connection.error().code,
                    fmt::format("worker {}: {}", peer.name, connection.error().message)};
  }
  rpc::PeerInfo info = self_;
  Result<rpc::PeerInfo> welcome =
      co_await rpc::client_handshake(env_, **connection, info, options_.connect_timeout);
  if (!welcome.ok()) {
    co_return Error{welcome.error().code,
                    fmt::format("worker {}: {}", peer.name, welcome.error().message)};
  }
  peer.info = std::move(*welcome);
  const std::weak_ptr<ClusterImpl> weak = self;
  rpc::ControlHandlers handlers;
  handlers.on_request =
      [weak, index](wire::ControlMessage request) -> asio::awaitable<Result<wire::ControlMessage>> {
    const auto alive = weak.lock();
    if (alive == nullptr) co_return Error{ErrorCode::kCancelled, "the coordinator is leaving"};
    Result<wire::ControlMessage> reply = co_await alive->answer(index, std::move(request));
    co_return reply;
  };
  handlers.on_notice = [weak, index](const wire::ControlMessage& notice) {
    if (const auto alive = weak.lock()) alive->take_notice(index, notice);
  };
  handlers.on_lost = [weak, name = peer.name](const Error& error) {
    if (const auto alive = weak.lock()) {
      alive->lost({ErrorCode::kUnavailable, fmt::format("worker {}: {}", name, error.message)});
    }
  };
  peer.control = std::make_unique<rpc::ControlConnection>(env_, std::move(*connection),
                                                          options_.control, std::move(handlers));
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
  } needs[] = {{n_ranks() > 1, rpc::Feature::kTensorSplit, "share layers with others (--tp)"},
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

asio::awaitable<Result<void>> ClusterImpl::hash() {
  const auto self = shared_from_this();
  Result<std::vector<TensorSpec>> announced = Error{ErrorCode::kCancelled, "hashing did not start"};
  const HashProgress told = [self](std::uint64_t done, std::uint64_t total) {
    asio::post(self->env_.executor, [self, done, total] {
      if (self->progress_.hashing) self->progress_.hashing(done, total);
    });
  };
  std::function<void()> work = [&] {
    const ChunkHasher hasher(options_.cache_dir, options_.n_threads, options_.verify);
    announced = announce_tensors(*file_, hasher, told);
  };
  co_await offload_.run(work);
  if (!announced.ok()) co_return Error(announced.error());
  tensors_ = std::move(*announced);
  co_return ok();
}

asio::awaitable<Result<void>> ClusterImpl::load(std::size_t index) {
  const auto self = shared_from_this();
  Peer& peer = peers_[index];
  const model::Slice& slice = plan_.slices[index];
  wire::ControlMessage request;
  wire::LoadSlice& load = *request.mutable_load_slice();
  load.set_session(id_.session);
  load.set_epoch(id_.epoch);
  load.set_secret(secret_to_wire(secret_));
  load.set_model(rpc::wire_text(std::filesystem::path(file_->name()).filename().string(), 255));
  const std::vector<std::byte> metadata = model::hyperparams_gguf(*file_, hyperparams_.vocab_size);
  load.set_hyperparams_gguf(std::string(as_text(metadata)));
  peer.chunks = std::make_unique<ChunkServer>(file_, tensors_, id_.session);
  const model::Share share = model::own_share(slice, hyperparams_);
  const auto part_of = [&](const TensorSpec& spec) {
    return model::tensor_part(hyperparams_, share, spec.name, spec.n_in, spec.n_out,
                              spec.n_experts);
  };
  for (std::uint32_t i = 0; i < tensors_.size(); ++i) {
    if (!model::slice_needs(slice, is_tied(), tensors_[i].name)) continue;
    peer.chunks->announce(i);
    peer.bytes_total += needed_bytes(tensors_[i], part_of(tensors_[i]));
    to_wire(tensors_[i], *load.add_tensors());
  }
  to_wire(slice, *load.mutable_slice());
  to_wire(slice_options_, *load.mutable_options());
  load.set_fetch_allowed(options_.fetch_allowed);
  load.set_verify(options_.verify);
  const Result<wire::ControlMessage> reply = co_await call(index, std::move(request), kLoadTimeout);
  peer.chunks->close();
  if (!reply.ok()) {
    // The others need not go on: their calls end, and the first error is the one that is told.
    if (!failure_.has_value()) failure_ = reply.error();
    disconnect();
    co_return Error(reply.error());
  }
  for (int i = 0; i < std::min(reply->loaded().notes_size(), kNotesMax); ++i) {
    log_warning("worker {}: {}; what differs was not used", peer.name,
                rpc::wire_text(reply->loaded().notes(i), kNoteBytesMax));
  }
  sources_.from_file += reply->loaded().bytes_local();
  sources_.from_cache += reply->loaded().bytes_cached();
  sources_.fetched += reply->loaded().bytes_fetched();
  co_return ok();
}

asio::awaitable<Result<wire::ControlMessage>> ClusterImpl::call(std::size_t index,
                                                                wire::ControlMessage request,
                                                                net::Duration timeout) {
  Peer& peer = peers_[index];
  Result<wire::ControlMessage> reply = co_await peer.control->call(std::move(request), timeout);
  if (!reply.ok()) {
    co_return Error{reply.error().code,
                    fmt::format("worker {}: {}", peer.name, reply.error().message)};
  }
  co_return reply;
}

/// Every rank of a group has the same rows: those of the next group take them from it in turn. The
/// channel into a worker has its number, channels between ranks have numbers of their own.
std::vector<asio::awaitable<Result<void>>> ClusterImpl::plan_links() {
  std::vector<asio::awaitable<Result<void>>> out;
  for (std::size_t to = n_ranks(); to < peers_.size(); ++to) {
    out.push_back(link(to - n_ranks(), to, static_cast<std::uint32_t>(to)));
  }
  for (std::size_t from = 0; from < peers_.size(); ++from) {
    const std::size_t group = from / n_ranks() * n_ranks();
    for (std::size_t to = group; to < group + n_ranks(); ++to) {
      if (to == from) continue;
      const std::uint32_t number =
          group_channel_number({.from = static_cast<std::uint32_t>(from - group),
                                .to = static_cast<std::uint32_t>(to - group)});
      out.push_back(link(from, to, number));
    }
  }
  return out;
}

asio::awaitable<Result<void>> ClusterImpl::link(std::size_t from, std::size_t to,
                                                std::uint32_t number) {
  wire::ControlMessage request;
  wire::OpenChannel& open = *request.mutable_open_channel();
  open.set_session(id_.session);
  open.set_epoch(id_.epoch);
  open.set_number(number);
  open.set_host(peers_[to].endpoint.host);
  open.set_port(peers_[to].endpoint.port);
  open.set_secret(secret_to_wire(secret_));
  const Result<wire::ControlMessage> reply = co_await call(from, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

asio::awaitable<Result<void>> ClusterImpl::start(std::size_t index) {
  wire::ControlMessage request;
  request.mutable_start_session()->set_session(id_.session);
  request.mutable_start_session()->set_epoch(id_.epoch);
  const Result<wire::ControlMessage> reply = co_await call(index, std::move(request), kCallTimeout);
  if (!reply.ok()) co_return Error(reply.error());
  co_return ok();
}

asio::awaitable<Result<OpenedChannel>> ClusterImpl::channel_to(std::size_t index,
                                                               rpc::ChannelRequest request) {
  const Peer& peer = peers_[index];
  OpenedChannel out;
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(peer.endpoint, options_.connect_timeout);
  if (!connection.ok()) {
    co_return Error{connection.error().code,
                    fmt::format("worker {}: {}", peer.name, connection.error().message)};
  }
  out.connection = std::move(*connection);
  rpc::PeerInfo info = self_;
  Result<rpc::ChannelHandshake> agreed = co_await rpc::channel_handshake(
      env_, *out.connection, info, request, options_.connect_timeout);
  if (!agreed.ok()) {
    co_return Error{agreed.error().code,
                    fmt::format("worker {}: {}", peer.name, agreed.error().message)};
  }
  out.agreed = std::move(*agreed);
  co_return out;
}

rpc::LinkContext ClusterImpl::link_context(std::uint32_t number, bool sends) {
  rpc::LinkContext context;
  context.env = env_;
  context.policy = options_.link_policy;
  context.self = self_.name;
  context.other = sends ? peers_[number].name : peers_[peers_.size() - n_ranks()].name;
  context.report = [weak = weak_from_this(), number, sends](const std::string& text) {
    if (const auto alive = weak.lock()) alive->links_.own_report(number, sends, text);
  };
  return context;
}

asio::awaitable<Result<void>> ClusterImpl::open_channels() {
  const auto self = shared_from_this();
  using Task = asio::awaitable<Result<void>>;
  Result<void> result = co_await run_all(env_.executor, plan_links());
  if (!result.ok()) co_return result;

  const std::size_t last = peers_.size() - n_ranks();  // The first rank of the last group.
  rpc::ChannelRequest in;
  in.id = id_;
  in.direction = rpc::Direction::kConnectorSends;
  in.secret = secret_;
  std::vector<OpenedChannel> firsts;
  for (std::uint32_t i = 0; i < n_ranks(); ++i) {
    in.number = i;
    RECUA_CO_ASSIGN_OR_RETURN(OpenedChannel first, co_await channel_to(i, in));
    firsts.push_back(std::move(first));
  }

  rpc::ChannelRequest out = in;
  out.number = static_cast<std::uint32_t>(peers_.size());
  out.direction = rpc::Direction::kAcceptorSends;
  out.ring = result_ring_shape(n_logit_rows_, hyperparams_.vocab_size);
  RECUA_CO_ASSIGN_OR_RETURN(OpenedChannel results, co_await channel_to(last, out));

  std::vector<Task> starts;
  for (std::size_t i = 0; i < peers_.size(); ++i) starts.push_back(start(i));
  result = co_await run_all(env_.executor, std::move(starts));
  if (!result.ok()) co_return result;

  RECUA_CO_ASSIGN_OR_RETURN(std::unique_ptr<RingBuffer> made,
                            RingBuffer::create(nullptr, out.ring, options_.link_policy));
  const std::shared_ptr<RingBuffer> ring = std::move(made);
  RemoteExecutor::Parts parts;
  parts.env = env_;
  parts.id = id_;
  parts.info = {
      .vocab_size = hyperparams_.vocab_size,
      .n_ctx = slice_options_.n_ctx,
      .n_pages = slice_options_.n_pages,
      .page_tokens = slice_options_.page_tokens,
      .n_batch = options_.n_batch,
      .n_ubatch = slice_options_.n_ubatch,
      .description = fmt::format("{} worker{}, {}", peers_.size(), peers_.size() == 1 ? "" : "s",
                                 describe(plan_, offers_))};
  parts.n_logit_rows = n_logit_rows_;
  for (std::uint32_t i = 0; i < n_ranks(); ++i) {
    OpenedChannel& first = firsts[i];
    parts.firsts.push_back(rpc::make_link_sender(link_context(i, true), std::move(first.connection),
                                                 first.agreed.ring, {},
                                                 first.agreed.peer.features));
  }
  RECUA_CO_ASSIGN_OR_RETURN(parts.last, rpc::make_link_receiver(link_context(out.number, false),
                                                                std::move(results.connection), id_,
                                                                out.ring, ring->memory()));
  parts.keep = ring;
  executor_ = std::make_unique<RemoteExecutor>(std::move(parts));
  result = co_await executor_->wait_until_settled(settle_timeout());
  if (failure_.has_value()) co_return *failure_;
  co_return result;
}

asio::awaitable<Result<wire::ControlMessage>> ClusterImpl::answer(std::size_t index,
                                                                  wire::ControlMessage request) {
  const auto self = shared_from_this();
  ChunkServer* chunks = peers_[index].chunks.get();
  if (!request.has_fetch_chunk() && !request.has_open_weights()) {
    co_return Error{ErrorCode::kUnsupported, "a coordinator only answers requests for weights"};
  }
  if (!options_.fetch_allowed || chunks == nullptr) {
    co_return Error{ErrorCode::kNotFound, "nothing is to be fetched, or fetching is not allowed"};
  }
  if (request.has_open_weights()) {
    Result<wire::ControlMessage> opened = co_await open_weights(index, request.open_weights());
    co_return opened;
  }
  Result<wire::ControlMessage> reply = co_await chunks->answer(request.fetch_chunk());
  co_return reply;
}

asio::awaitable<Result<wire::ControlMessage>> ClusterImpl::open_weights(std::size_t index,
                                                                        wire::OpenWeights request) {
  const auto self = shared_from_this();
  Peer& peer = peers_[index];
  if (request.session() != id_.session || request.epoch() != id_.epoch ||
      !peer.info.has(rpc::Feature::kPushChunks) || peer.weights_asked) {
    co_return Error{ErrorCode::kProtocol,
                    "a channel for weights is opened once per session, by whoever knows them"};
  }
  peer.weights_asked = true;
  rpc::ChannelRequest channel;
  channel.id = id_;
  channel.number = kWeightsChannel;
  channel.direction = rpc::Direction::kConnectorSends;
  channel.secret = secret_;
  RECUA_CO_ASSIGN_OR_RETURN(OpenedChannel opened, co_await channel_to(index, channel));
  if (failure_.has_value()) co_return *failure_;
  WeightsPusher::Parts parts;
  parts.context.env = env_;
  parts.context.policy = options_.link_policy;
  parts.context.self = self_.name;
  parts.context.other = peer.name;
  parts.context.report = [weak = weak_from_this(), index](const std::string& text) {
    if (const auto alive = weak.lock()) alive->links_.weights_report(index, text);
  };
  parts.id = id_;
  parts.connection = std::move(opened.connection);
  parts.ring = opened.agreed.ring;
  parts.features = std::move(opened.agreed.peer.features);
  parts.ended = [weak = weak_from_this(), index](const rpc::LinkStats& stats) {
    if (const auto alive = weak.lock()) alive->links_.add_weights(index, stats);
  };
  RECUA_CO_RETURN_IF_ERROR(peer.chunks->push_on(offload_, std::move(parts)));
  wire::ControlMessage reply;
  reply.mutable_done();
  co_return reply;
}

void ClusterImpl::take_notice(std::size_t index, const wire::ControlMessage& notice) {
  Peer& peer = peers_[index];
  if (notice.has_load_progress() && notice.load_progress().session() == id_.session) {
    peer.bytes_done = std::min(notice.load_progress().bytes_done(), peer.bytes_total);
    std::uint64_t done = 0;
    std::uint64_t total = 0;
    for (const Peer& each : peers_) {
      done += each.bytes_done;
      total += each.bytes_total;
    }
    if (progress_.loading) progress_.loading(done, total);
  } else if (notice.has_session_failed() && notice.session_failed().session() == id_.session) {
    const wire::SessionFailed& failed = notice.session_failed();
    const Error error = rpc::from_peer(peer.name, failed.code(), failed.message());
    lost({error.code, "worker " + error.message});
  } else if (notice.has_link_report() && notice.link_report().session() == id_.session) {
    links_.report(index, notice.link_report());
  }
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

}  // namespace

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
