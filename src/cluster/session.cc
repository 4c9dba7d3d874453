#include "cluster/session.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "cluster/plan.h"
#include "cluster/weights_channel.h"
#include "cluster/wire.h"
#include "gguf/gguf_file.h"
#include "kv/paged_cache.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// a * b, or the largest number: these come from a peer, and too much is too much.
std::uint64_t saturated_mul(std::uint64_t a, std::uint64_t b) {
  return checked_mul(a, b).value_or(std::numeric_limits<std::uint64_t>::max());
}
std::uint64_t saturated_add(std::uint64_t a, std::uint64_t b) {
  return checked_add(a, b).value_or(std::numeric_limits<std::uint64_t>::max());
}

std::uint64_t cache_bytes(const model::HyperParams& hp, const model::Slice& slice,
                          const model::SliceOptions& options) {
  const kv::KvShape shape = {.n_layers = slice.layer_end - slice.layer_begin,
                             .n_kv_heads = model::own_share(slice, hp).kv_heads.size(),
                             .head_dim = hp.head_dim,
                             .n_pages = options.n_pages,
                             .page_tokens = options.page_tokens,
                             .k_type = options.k_type,
                             .v_type = options.v_type};
  const auto is_whole = [&](quant::DataType type) {
    return hp.head_dim % quant::traits(type).block_size == 0;
  };
  if (!is_whole(options.k_type) || !is_whole(options.v_type)) return 0;  // PagedCache refuses it.
  const std::size_t bytes = shape.bytes();
  return bytes == 0 ? std::numeric_limits<std::uint64_t>::max() : bytes;
}

rpc::RingShape input_ring(const model::HyperParams& hp, const model::Slice& slice,
                          const model::SliceOptions& options) {
  const std::uint64_t row_bytes =
      slice.is_first() ? 0 : std::uint64_t{hp.hidden_size} * sizeof(float);
  return ring_shape(options.n_ubatch, row_bytes);
}

/// Rings, buffers to send from and activations. The activations are estimated from above: a few
/// rows each of the widths that occur.
std::uint64_t working_bytes(const model::HyperParams& hp, const model::Slice& slice,
                            const model::SliceOptions& options, const rpc::RingShape& ring) {
  const std::uint64_t ffn = hp.n_experts == 0
                                ? std::uint64_t{hp.ffn_size}
                                : std::uint64_t{hp.expert_ffn_size} * hp.n_experts_used;
  const std::uint64_t row_floats =
      8 * std::uint64_t{hp.hidden_size} + 3 * std::uint64_t{hp.n_heads} * hp.head_dim + 2 * ffn;
  const std::uint64_t rows =
      saturated_mul(saturated_mul(row_floats, sizeof(float)), options.n_ubatch);
  const std::uint64_t sent =
      StageBuffers::bytes(slice, options.n_ubatch, hp.hidden_size, hp.vocab_size) +
      (slice.n_ranks > 1 ? group_bytes(slice.n_ranks) : 0);
  return saturated_add(saturated_add(ring.n_slots * ring.slot_bytes, saturated_add(rows, sent)),
                       4 * std::uint64_t{options.n_pages});
}

/// What the slice has of each tensor.
PartOf part_of(const Session::Request& request) {
  if (request.slice.n_ranks == 1) return whole_part;
  return [&hp = request.hyperparams,
          share = model::own_share(request.slice, request.hyperparams)](const TensorSpec& spec) {
    return model::tensor_part(hp, share, spec.name, spec.n_in, spec.n_out, spec.n_experts);
  };
}

/// Of a rank's tensors only its parts stay in memory.
std::uint64_t weight_bytes(const Session::Request& request) {
  if (request.slice.n_ranks == 1) {
    std::uint64_t whole = 0;
    for (const TensorSpec& tensor : request.tensors) whole = saturated_add(whole, tensor.bytes);
    return whole;
  }
  const PartOf part = part_of(request);
  std::uint64_t out = 0;
  for (const TensorSpec& tensor : request.tensors) {
    out = saturated_add(out, model::part_bytes(part(tensor), tensor.type));
  }
  return out;
}

Error given_up() { return {ErrorCode::kCancelled, "the session was closed while it was loading"}; }

}  // namespace

Result<Session::Request> Session::parse(const wire::LoadSlice& message) {
  Request request;
  request.id = {.session = message.session(), .epoch = message.epoch()};
  RECUA_ASSIGN_OR_RETURN(request.secret, secret_from_wire(message.secret()));
  request.model = rpc::wire_text(message.model(), 255);
  RECUA_ASSIGN_OR_RETURN(request.slice, from_wire(message.slice()));
  RECUA_ASSIGN_OR_RETURN(request.options, from_wire(message.options()));
  const auto metadata = gguf::GgufFile::parse(as_bytes(message.hyperparams_gguf()),
                                              "hyperparameters of " + request.model);
  if (!metadata.ok()) return Error(metadata.error());
  RECUA_ASSIGN_OR_RETURN(request.hyperparams, model::read_hyperparams(*metadata));
  if (request.slice.n_layers != request.hyperparams.n_layers) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("slice.n_layers is {}, but the model's metadata says {}",
                             request.slice.n_layers, request.hyperparams.n_layers)};
  }
  RECUA_RETURN_IF_ERROR(model::check_slice(request.slice, request.hyperparams));
  for (const wire::Tensor& tensor : message.tensors()) {
    RECUA_ASSIGN_OR_RETURN(TensorSpec spec, from_wire(tensor));
    request.tensors.push_back(std::move(spec));
  }
  request.fetch_allowed = message.fetch_allowed();
  request.verify = message.verify();
  const auto sums = collective::wire_format_from_number(message.sum_format());
  if (!sums) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("load_slice.sum_format is {}, must be 0 (f32), 1 (f16), 30 (bf16) or "
                             "32769 (i8)",
                             message.sum_format())};
  }
  request.sums = *sums;
  request.may_overlap = message.may_overlap();
  return request;
}

Session::Session(SessionEnv env, Request request, SessionEvents events)
    : env_(std::move(env)),
      request_(std::move(request)),
      events_(std::move(events)),
      group_(request_.slice.rank, request_.slice.n_ranks),
      ended_(env_.env.executor) {
  group_.set_sums(request_.sums, request_.may_overlap);
}

Session::~Session() { group_.disconnect(); }  // Its loop goes before it does.

asio::awaitable<Result<void>> Session::load(ChunkSource source) {
  const auto self = shared_from_this();
  const PartOf part = part_of(request_);
  std::uint64_t total = 0;
  for (const TensorSpec& tensor : request_.tensors) {
    total = saturated_add(total, needed_bytes(tensor, part(tensor)));
  }
  const std::uint64_t cache = cache_bytes(request_.hyperparams, request_.slice, request_.options);
  ring_shape_ = input_ring(request_.hyperparams, request_.slice, request_.options);
  RECUA_CO_RETURN_IF_ERROR(rpc::validate(ring_shape_));
  const std::uint64_t needed = saturated_add(
      saturated_add(weight_bytes(request_), cache),
      working_bytes(request_.hyperparams, request_.slice, request_.options, ring_shape_));
  // What is free is asked before this session counts itself.
  if (const std::uint64_t free = env_.memory_free(); needed > free) {
    co_return Error{ErrorCode::kResourceExhausted,
                    fmt::format("layers {}-{} need {} ({} of it cache), but {} are free here",
                                request_.slice.layer_begin, request_.slice.layer_end - 1,
                                format_bytes(needed), format_bytes(cache), format_bytes(free))};
  }
  memory_bytes_ = needed;

  // Disk and hashing go elsewhere; progress comes back to this loop.
  Result<std::unique_ptr<SliceWeights>> weights =
      Error{ErrorCode::kCancelled, "loading did not start"};
  const HashProgress hash_progress = [self, total, home = env_.env.executor](std::uint64_t done,
                                                                             std::uint64_t) {
    asio::post(home, [self, done, total] {
      if (!self->closed_) self->events_.progress(std::min(done, total), total, 0);
    });
  };
  std::function<void()> look = [&] {
    const ChunkHasher hasher(env_.cache_dir, env_.n_threads, request_.verify, &closed_);
    weights = SliceWeights::begin(request_.tensors, env_.models_dir, hasher,
                                  ChunkStore(env_.cache_dir), hash_progress, part);
  };
  co_await env_.offload->run(look);
  if (!weights.ok()) co_return Error(weights.error());
  if (closed_) co_return given_up();

  const std::shared_ptr<SliceWeights> found = std::move(*weights);
  for (const FileDifference& difference : found->differences()) {
    notes_.push_back(to_string(difference));
  }
  if (!found->missing().empty()) {
    const Result<void> fetched = co_await fetch_missing(found, std::move(source), total);
    if (!fetched.ok()) co_return Error(fetched.error());
  }
  counts_ = found->counts();
  weights_ = std::move(*found).finish();
  if (closed_) co_return given_up();

  Result<void> built = ok();
  std::function<void()> make = [&] { built = build(*weights_); };
  co_await env_.offload->run(make);
  if (!built.ok()) co_return built;
  if (closed_) co_return given_up();
  events_.progress(total, total, counts_.fetched);
  loaded_ = true;
  co_return ok();
}

asio::awaitable<Result<void>> Session::fetch_missing(std::shared_ptr<SliceWeights> weights,
                                                     ChunkSource source,
                                                     std::uint64_t total_bytes) {
  const auto self = shared_from_this();
  if (!request_.fetch_allowed) {
    const std::string remedy = fmt::format(
        "the coordinator does not send weights (--no-fetch): copy its file to {} or allow that",
        env_.models_dir.empty() ? "the folder given with --models" : env_.models_dir.string());
    if (!notes_.empty()) {
      co_return Error{ErrorCode::kNotFound, fmt::format("{}, and {}", notes_.front(), remedy)};
    }
    const std::span<const ChunkRef> missing = weights->missing();
    const TensorSpec& first = weights->spec(missing.front());
    co_return Error{
        ErrorCode::kNotFound,
        fmt::format("{} chunks of this slice are not here (first: tensor {} of {}), and {}",
                    missing.size(), first.name, first.file, remedy)};
  }
  WeightsFetcher::Parts parts;
  parts.env = env_.env;
  parts.offload = env_.offload;
  parts.policy = env_.link_policy;
  parts.name = env_.name;
  parts.id = request_.id;
  parts.weights = std::move(weights);
  parts.source = std::move(source);
  parts.progress = events_.progress;
  parts.total_bytes = total_bytes;
  parts.reported = [reported = events_.reported](const rpc::LinkStats& link,
                                                 const std::string& text) {
    reported(link, kWeightsChannel, text);
  };
  fetcher_ = std::make_shared<WeightsFetcher>(std::move(parts));
  Result<void> fetched = co_await fetcher_->run();
  if (fetcher_->link().has_value()) {
    SessionLink& link = links_.emplace_back();
    link.number = kWeightsChannel;
    link.stats = *fetcher_->link();
    link.stats.to = env_.name;
    link.stats.carries = "weights";
  }
  fetcher_.reset();
  if (fetched.ok() && closed_) co_return given_up();
  co_return fetched;
}

Result<void> Session::build(const model::WeightSource& weights) {
  RECUA_ASSIGN_OR_RETURN(device_, env_.make_device());
  RECUA_ASSIGN_OR_RETURN(
      runner_, model::SliceRunner::create(*device_, request_.hyperparams, weights, request_.slice,
                                          request_.options, group_));
  RECUA_ASSIGN_OR_RETURN(ring_, RingBuffer::create(device_.get(), ring_shape_, env_.link_policy));
  return ok();
}

Result<rpc::RingShape> Session::ring(const rpc::ChannelRequest& request) const {
  if (request.number == kWeightsChannel && fetcher_ != nullptr) return fetcher_->ring();
  if (!loaded_) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("session {:016x} is not loaded yet", request.id.session)};
  }
  return group_channel_of(request.number) ? kGroupRing : ring_shape_;
}

Result<void> Session::attach(std::unique_ptr<net::Connection> connection,
                             const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) {
  if (request.number == kWeightsChannel) {
    if (fetcher_ == nullptr || request.direction != rpc::Direction::kConnectorSends) {
      return Error{ErrorCode::kProtocol, "this session does not wait for a channel for weights"};
    }
    return fetcher_->attach(std::move(connection), peer);
  }
  ChannelEnd end{.connection = std::move(connection),
                 .number = request.number,
                 .name = peer.name,
                 .ring = request.ring,
                 .features = peer.features};
  if (request.direction == rpc::Direction::kAcceptorSends) return attach_out(std::move(end));
  const auto channel = group_channel_of(end.number);
  if (!loaded_ || closed_ || loop_ != nullptr || (!channel && in_.connection != nullptr)) {
    return Error{ErrorCode::kProtocol, "this session does not wait for an incoming channel"};
  }
  if (channel) return group_.attach(*channel, std::move(end));
  in_ = std::move(end);
  return ok();
}

Result<void> Session::attach_out(ChannelEnd end) {
  const auto channel = group_channel_of(end.number);
  if (!loaded_ || closed_ || loop_ != nullptr || (!channel && out_.connection != nullptr)) {
    return Error{ErrorCode::kProtocol, "this session does not wait for an outgoing channel"};
  }
  if (channel) return group_.attach(*channel, std::move(end));
  out_ = std::move(end);
  return ok();
}

rpc::LinkContext session_link_context(const SessionEnv& env, StageLoop& loop, const ChannelEnd& end,
                                      bool sends, const LinkReported& reported) {
  rpc::LinkContext context;
  context.env = env.env;
  context.env.executor = loop.executor();
  context.policy = env.link_policy;
  context.self = env.name;
  context.other = end.name;
  const rpc::LinkStats link{.from = sends ? env.name : end.name,
                            .to = sends ? end.name : env.name,
                            .transport = {},
                            .sends = sends,
                            .counters = {}};
  context.report = [home = env.env.executor, reported, link,
                    number = end.number](const std::string& text) {
    asio::post(home, [reported, link, number, text] { reported(link, number, text); });
  };
  return context;
}

rpc::LinkContext Session::link_context(const ChannelEnd& end, bool sends) {
  return session_link_context(env_, *loop_, end, sends, events_.reported);
}

std::function<void(const std::string&)> Session::group_reporter() const {
  const std::string where = fmt::format("ranks of layers {}-{}", request_.slice.layer_begin,
                                        request_.slice.layer_end - 1);
  const rpc::LinkStats link{.from = env_.name, .to = env_.name};
  return [home = env_.env.executor, reported = events_.reported, link, where,
          number = group_report_number(request_.slice.rank)](const std::string& text) {
    asio::post(home, [reported, link, number, line = where + ": " + text] {
      reported(link, number, line);
    });
  };
}

Result<void> Session::start() {
  const bool may_end_here = request_.slice.n_ranks > 1;  // Another rank sends what all have.
  if (in_.connection == nullptr || (out_.connection == nullptr && !may_end_here)) {
    return Error{ErrorCode::kProtocol,
                 "start_session came before both channels of the slice were open"};
  }
  RECUA_RETURN_IF_ERROR(group_.check_complete());
  loop_ = env_.offload->new_stage_loop();
  net::Env stage_env = env_.env;
  stage_env.executor = loop_->executor();
  stage_env.run_one = loop_->run_one();
  RECUA_ASSIGN_OR_RETURN(auto in, std::exchange(in_.connection, {})->move_to(loop_->executor()));
  RECUA_RETURN_IF_ERROR(group_.connect(
      request_.id, stage_env, env_.link_policy,
      [this](const ChannelEnd& end, bool sends) { return link_context(end, sends); },
      loop_->new_waiter()));
  const bool sends = out_.connection != nullptr;
  const rpc::RingShape no_ring{.n_slots = 1, .slot_bytes = rpc::kTensorHeaderBytes};
  RECUA_ASSIGN_OR_RETURN(buffers_,
                         StageBuffers::allocate(*device_, *runner_, request_.hyperparams.vocab_size,
                                                sends ? out_.ring : no_ring));
  Stage::Parts parts{.id = request_.id,
                     .device = device_.get(),
                     .runner = runner_.get(),
                     .vocab_size = request_.hyperparams.vocab_size,
                     .name = fmt::format("{}, layers {}-{}", env_.name, request_.slice.layer_begin,
                                         request_.slice.layer_end - 1),
                     .ring = ring_->buffer(),
                     .buffers = &buffers_,
                     .compute_mutex = request_.slice.n_ranks == 1 ? env_.compute_mutex : nullptr};
  RECUA_ASSIGN_OR_RETURN(
      parts.in, rpc::make_link_receiver(link_context(in_, false), std::move(in), request_.id,
                                        ring_shape_, ring_->memory()));
  if (sends) {
    std::vector<std::span<std::byte>> sources;
    if (!buffers_.memory().empty()) sources.push_back(buffers_.memory());
    RECUA_ASSIGN_OR_RETURN(auto out,
                           std::exchange(out_.connection, {})->move_to(loop_->executor()));
    parts.out = rpc::make_link_sender(link_context(out_, true), std::move(out), out_.ring,
                                      std::move(sources), out_.features);
  }
  if (request_.slice.n_ranks > 1) {
    parts.group = &group_;
    parts.report_group = group_reporter();
  }
  stage_ = std::make_shared<Stage>(std::move(parts));

  // The control loop may not run out of work before the stage's end has been told there.
  asio::any_io_executor home =
      asio::prefer(env_.env.executor, asio::execution::outstanding_work.tracked);
  asio::co_spawn(loop_->executor(), stage_->drive(stage_env),
                 [self = shared_from_this(), home = std::move(home)](std::exception_ptr thrown,
                                                                     Result<void> ended) mutable {
                   if (thrown != nullptr) {
                     ended = Error{ErrorCode::kResourceExhausted, "the stage ran out of memory"};
                   }
                   // Back to the control loop, which alone touches the session.
                   asio::post(home, [self = std::move(self), ended = std::move(ended)] {
                     self->stage_ended(ended);
                   });
                 });
  return ok();
}

void Session::stage_ended(const Result<void>& ended) {
  for (const rpc::LinkStats& stats : stage_->link_stats()) {
    const ChannelEnd& end = stats.sends ? out_ : in_;
    SessionLink& link = links_.emplace_back(SessionLink{.number = end.number, .stats = stats});
    link.stats.from = stats.sends ? env_.name : end.name;
    link.stats.to = stats.sends ? end.name : env_.name;
  }
  for (SessionLink link : group_.links()) {
    (link.stats.sends ? link.stats.from : link.stats.to) = env_.name;
    links_.push_back(std::move(link));
  }
  if (!ended.ok() && !closed_) events_.failed(ended.error());
  stage_.reset();
  ended_.notify_all();
}

void Session::close() {
  if (closed_.exchange(true)) return;
  if (fetcher_ != nullptr) fetcher_->stop();
  in_.connection.reset();
  out_.connection.reset();
  group_.cancel();
  if (stage_ != nullptr) {
    // A busy stage sees the request, a sleeping one is woken. Its end (see start()) drops it and
    // then the session.
    stage_->request_stop();
    asio::post(loop_->executor(), [stage = std::weak_ptr<Stage>(stage_)] {
      if (const auto alive = stage.lock()) alive->wake();
    });
  }
}

asio::awaitable<void> Session::wait_until_ended(net::Duration timeout) {
  const auto self = shared_from_this();
  bool expired = false;
  const auto timer = env_.env.clock->start_timer(env_.env.executor, env_.env.clock->now() + timeout,
                                                 [this, &expired] {
                                                   expired = true;
                                                   ended_.notify_all();
                                                 });
  while (stage_ != nullptr && !expired) co_await ended_.wait();
}

}  // namespace recua::cluster
