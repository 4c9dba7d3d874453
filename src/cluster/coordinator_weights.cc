// How workers get their slices: hashes, the message that describes a slice, and answers to those
// who lack chunks of theirs.

#include <algorithm>
#include <filesystem>
#include <utility>

#include <boost/asio/post.hpp>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/coordinator_impl.h"
#include "cluster/weights_channel.h"
#include "cluster/wire.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// Loading ends by the worker's answer or by its loss, which heartbeats notice; this is for a
/// worker that lives and does nothing.
constexpr net::Duration kLoadTimeout = std::chrono::hours(12);

/// Of what a worker has to say about its loading.
constexpr int kNotesMax = 4;
constexpr std::size_t kNoteBytesMax = 1024;

}  // namespace

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
  load.set_sum_format(static_cast<std::uint32_t>(options_.sums));
  load.set_may_overlap(std::all_of(peers_.begin(), peers_.end(), [](const Peer& each) {
    return each.info.has(rpc::Feature::kGroupOptions);
  }));
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

}  // namespace recua::cluster
