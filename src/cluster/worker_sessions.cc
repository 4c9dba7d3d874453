// The life of a coordinator's sessions on a worker: slices, measurements and trainings are opened,
// get their channels, start, and are closed.

#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/link_wire.h"
#include "cluster/wire.h"
#include "cluster/worker_client.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kChannelTimeout = std::chrono::seconds(10);
/// A stage that computes ends after its micro-batch; who closes a session waits for 2 s.
constexpr net::Duration kStageEndTimeout = std::chrono::seconds(1);
/// A rank ends after its pass, and its memory is needed for the run to go on.
constexpr net::Duration kTrainingEndTimeout = std::chrono::minutes(10);
constexpr std::size_t kNoteBytesMax = 1024;

wire::ControlMessage done() {
  wire::ControlMessage reply;
  reply.mutable_done();
  return reply;
}

template <class Message>
rpc::ChannelId id_of(const Message& message) {
  return {.session = message.session(), .epoch = message.epoch()};
}

template <class Host>
Result<std::shared_ptr<Host>> own_session(
    const std::map<std::uint64_t, std::shared_ptr<Host>>& sessions, rpc::ChannelId id) {
  const auto found = sessions.find(id.session);
  if (found != sessions.end() && found->second->id().epoch == id.epoch) return found->second;
  return Error{
      ErrorCode::kNotFound,
      fmt::format("no session {:016x} with epoch {} on this connection", id.session, id.epoch)};
}

}  // namespace

asio::awaitable<Client::Reply> Client::load(const wire::LoadSlice& message) {
  const auto self = shared_from_this();
  RECUA_CO_ASSIGN_OR_RETURN(Session::Request request, Session::parse(message));
  RECUA_CO_RETURN_IF_ERROR(worker_->check_new_session(request.id.session));
  const rpc::ChannelId id = request.id;
  const std::string description = fmt::format(
      "{}, layers {}-{}", request.model, request.slice.layer_begin, request.slice.layer_end - 1);
  const auto session =
      std::make_shared<Session>(worker_->session_env, std::move(request), session_events(id));
  sessions_[id.session] = session;
  worker_->holding_memory.push_back(session);

  ChunkSource source =
      make_chunk_source(id, call_coordinator(), peer_.has(rpc::Feature::kPushChunks));
  const Result<void> loaded = co_await session->load(std::move(source));
  if (!loaded.ok()) {
    session->close();
    const auto found = sessions_.find(id.session);
    if (found != sessions_.end() && found->second == session) sessions_.erase(found);
    co_return Error(loaded.error());
  }
  const SourceCounts& counts = session->counts();
  log_info("loaded {}: {} from files, {} from the cache, {} fetched", description,
           format_bytes(counts.from_file), format_bytes(counts.from_cache),
           format_bytes(counts.fetched));
  wire::ControlMessage reply;
  reply.mutable_loaded()->set_session(id.session);
  reply.mutable_loaded()->set_bytes(session->memory_bytes());
  reply.mutable_loaded()->set_bytes_local(counts.from_file);
  reply.mutable_loaded()->set_bytes_cached(counts.from_cache);
  reply.mutable_loaded()->set_bytes_fetched(counts.fetched);
  for (const std::string& note : session->notes()) {
    reply.mutable_loaded()->add_notes(rpc::wire_text(note, kNoteBytesMax));
  }
  co_return reply;
}

asio::awaitable<Client::Reply> Client::open_training(const wire::OpenTraining& message) {
  const auto self = shared_from_this();
  if (!worker_->options.make_training) {
    co_return Error{ErrorCode::kUnsupported, "this worker does not train"};
  }
  RECUA_CO_RETURN_IF_ERROR(worker_->check_new_session(message.session()));
  const rpc::ChannelId id = id_of(message);
  const SessionEvents events = session_events(id);
  TrainingEvents training_events{
      .call = call_coordinator(), .failed = events.failed, .reported = events.reported};
  RECUA_CO_ASSIGN_OR_RETURN(
      const std::shared_ptr<TrainingSession> training,
      worker_->options.make_training(worker_->session_env, message, std::move(training_events)));
  trainings_[id.session] = training;
  worker_->holding_memory.push_back(training);
  const Result<void> opened = co_await training->open();
  if (opened.ok()) co_return done();
  training->close();
  const auto found = trainings_.find(id.session);
  if (found != trainings_.end() && found->second == training) trainings_.erase(found);
  co_return Error(opened.error());
}

Client::Reply Client::add_state(const wire::TrainState& piece) {
  RECUA_ASSIGN_OR_RETURN(const std::shared_ptr<TrainingSession> training,
                         own_session(trainings_, id_of(piece)));
  RECUA_RETURN_IF_ERROR(training->add_state(piece));
  return done();
}

Client::Reply Client::open_echo(const wire::OpenEcho& message) {
  RECUA_ASSIGN_OR_RETURN(const EchoSession::Request request, EchoSession::parse(message));
  if (worker_->find_host(request.id.session) != nullptr) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("session {:016x} is open already", request.id.session)};
  }
  if (const std::size_t n_open = worker_->n_echoes(); n_open >= kEchoSessionsMax) {
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("{} measurements are open here already, the most that a worker takes", n_open)};
  }
  if (const std::uint64_t free = worker_->memory_free(); request.ring_bytes() > free) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("open_echo asks for a ring of {}, but {} are free here",
                             format_bytes(request.ring_bytes()), format_bytes(free))};
  }
  RECUA_ASSIGN_OR_RETURN(
      echoes_[request.id.session],
      EchoSession::create(worker_->env, *worker_->session_env.offload, worker_->options.name,
                          request, worker_->options.link_policy));
  return done();
}

asio::awaitable<Client::Reply> Client::open_channel(const wire::OpenChannel& message) {
  const auto self = shared_from_this();
  const rpc::ChannelId id = id_of(message);
  std::shared_ptr<ChannelHost> session;
  if (trainings_.contains(id.session)) {
    RECUA_CO_ASSIGN_OR_RETURN(session, own_session(trainings_, id));
  } else {
    RECUA_CO_ASSIGN_OR_RETURN(session, own_session(sessions_, id));
  }
  RECUA_CO_ASSIGN_OR_RETURN(const net::Endpoint endpoint,
                            endpoint_from_wire("open_channel", message.host(), message.port()));
  rpc::ChannelRequest request;
  request.id = session->id();
  request.number = message.number();
  request.direction = rpc::Direction::kConnectorSends;
  RECUA_CO_ASSIGN_OR_RETURN(request.secret, secret_from_wire(message.secret()));
  Result<std::unique_ptr<net::Connection>> connected =
      co_await worker_->env.network->connect(endpoint, kChannelTimeout);
  if (!connected.ok()) co_return Error(std::move(connected).error());
  rpc::PeerInfo info = worker_->self_info();
  Result<rpc::ChannelHandshake> opened = co_await rpc::channel_handshake(
      worker_->env, **connected, info, request, worker_->options.handshake_timeout);
  if (!opened.ok()) co_return Error(opened.error());
  // What it runs on in the end is told by a LinkReport.
  wire::ControlMessage reply;
  reply.mutable_channel_opened()->set_transport("tcp " + (*connected)->peer());
  RECUA_CO_RETURN_IF_ERROR(session->attach_out({.connection = std::move(*connected),
                                                .number = request.number,
                                                .name = endpoint.to_string(),
                                                .ring = opened->ring,
                                                .features = std::move(opened->peer.features)}));
  co_return reply;
}

Client::Reply Client::start(const wire::StartSession& message) {
  const rpc::ChannelId id = id_of(message);
  if (const auto echo = echoes_.find(id.session); echo != echoes_.end()) {
    RECUA_RETURN_IF_ERROR(echo->second->start(
        [weak = weak_from_this(), echo_id = echo->second->id()](const Error& error) {
          log_debug("measurement {:016x} ended: {}", echo_id.session, error.message);
          if (const auto alive = weak.lock()) alive->tell_failed(echo_id, error);
        }));
  } else if (trainings_.contains(id.session)) {
    RECUA_ASSIGN_OR_RETURN(const std::shared_ptr<TrainingSession> training,
                           own_session(trainings_, id));
    RECUA_RETURN_IF_ERROR(training->start());
  } else {
    RECUA_ASSIGN_OR_RETURN(const std::shared_ptr<Session> session, own_session(sessions_, id));
    RECUA_RETURN_IF_ERROR(session->start());
  }
  return done();
}

asio::awaitable<Client::Reply> Client::close_session(const wire::CloseSession& message) {
  const auto self = shared_from_this();
  const std::uint64_t id = message.session();
  const auto found = sessions_.find(id);
  const std::shared_ptr<Session> session = found == sessions_.end() ? nullptr : found->second;
  if (session != nullptr) {
    session->close();
    sessions_.erase(found);
  }
  if (const auto echo = echoes_.find(id); echo != echoes_.end()) {
    echo->second->close();
    echoes_.erase(echo);
    co_return done();
  }
  if (const auto training = trainings_.find(id); training != trainings_.end()) {
    const std::shared_ptr<TrainingSession> alive = training->second;
    alive->close();
    trainings_.erase(training);
    co_await alive->wait_until_ended(kTrainingEndTimeout);
    co_return done();
  }
  if (!peer_.has(rpc::Feature::kLinks)) co_return done();
  wire::ControlMessage reply;
  reply.mutable_session_closed()->set_session(id);
  if (session != nullptr) {
    co_await session->wait_until_ended(kStageEndTimeout);
    for (const SessionLink& link : session->links()) {
      *reply.mutable_session_closed()->add_links() = to_wire(link);
    }
  }
  co_return reply;
}

}  // namespace recua::cluster
