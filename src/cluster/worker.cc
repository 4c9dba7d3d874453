#include "cluster/worker.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/chunk_requests.h"
#include "cluster/echo_session.h"
#include "cluster/link_wire.h"
#include "cluster/measure_host.h"
#include "cluster/plan.h"
#include "cluster/wire.h"
#include "net/event.h"
#include "quant/data_type.h"
#include "rpc/wire_error.h"
#include "sys/memory.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kChannelTimeout = std::chrono::seconds(10);
/// A stage that computes ends after its micro-batch; who closes a session waits for 2 s.
constexpr net::Duration kStageEndTimeout = std::chrono::seconds(1);
/// A rank ends after its pass, and its memory is needed for the run to go on.
constexpr net::Duration kTrainingEndTimeout = std::chrono::minutes(10);
/// Each session has threads and descriptors of its own.
constexpr std::size_t kSessionsMax = 64;
constexpr std::size_t kNoteBytesMax = 1024;
/// Progress is told at most so often.
constexpr net::Duration kProgressInterval = std::chrono::milliseconds(100);

/// One coordinator: its control connection and its sessions.
struct Client {
  explicit Client(const asio::any_io_executor& executor) : gone(executor) {}
  rpc::PeerInfo peer;
  std::unique_ptr<rpc::ControlConnection> control;
  std::map<std::uint64_t, std::shared_ptr<Session>> sessions;
  std::map<std::uint64_t, std::shared_ptr<EchoSession>> echoes;  // Measurements.
  std::map<std::uint64_t, std::shared_ptr<TrainingSession>> trainings;
  net::Event gone;
  bool lost = false;

  void tell(wire::ControlMessage notice) const {
    if (lost) return;
    if (const auto sent = control->notify(std::move(notice)); !sent.ok()) {
      log_debug("a notice was not sent: {}", sent.error().message);
    }
  }
};

wire::ControlMessage failed_notice(const rpc::ChannelId& id, const Error& error) {
  wire::ControlMessage notice;
  notice.mutable_session_failed()->set_session(id.session);
  notice.mutable_session_failed()->set_epoch(id.epoch);
  notice.mutable_session_failed()->set_code(rpc::to_wire(error.code));
  notice.mutable_session_failed()->set_message(rpc::wire_text(error.message, 2048));
  return notice;
}

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

CallCoordinator call_coordinator(const std::weak_ptr<Client>& weak) {
  return [weak](wire::ControlMessage ask,
                net::Duration timeout) -> asio::awaitable<Result<wire::ControlMessage>> {
    const std::shared_ptr<Client> alive = weak.lock();
    if (alive == nullptr || alive->lost) {
      co_return Error{ErrorCode::kCancelled, "the coordinator left while it was asked"};
    }
    Result<wire::ControlMessage> reply = co_await alive->control->call(std::move(ask), timeout);
    co_return reply;
  };
}

}  // namespace

struct Worker::State : std::enable_shared_from_this<Worker::State> {
  State(net::Env env_in, Offload& offload, DeviceFactory make_device, WorkerOptions options_in)
      : env(std::move(env_in)),
        options(std::move(options_in)),
        measurements(offload, options.measuring, [this] { return at_work(); }) {
    session_env = {.name = options.name,
                   .env = env,
                   .offload = &offload,
                   .make_device = std::move(make_device),
                   .models_dir = options.models_dir,
                   .cache_dir = options.cache_dir,
                   .n_threads = options.n_threads,
                   .compute_mutex = &compute_mutex,
                   .memory_free = [this] { return memory_free(); },
                   .link_policy = options.link_policy};
  }

  /// What a new session may use. Sessions that were closed count until they are really gone;
  /// without a limit of ours, loaded ones are what the system sees in use already.
  [[nodiscard]] std::uint64_t memory_free() {
    forget_gone_sessions();
    const bool limited = options.memory_bytes != 0;
    const std::uint64_t limit = limited ? options.memory_bytes : sys::memory_info().available_bytes;
    std::uint64_t used = 0;
    for (const auto& weak : holding_memory) {
      const auto session = weak.lock();
      if (session != nullptr && (limited || !session->loaded())) used += session->memory_bytes();
    }
    for (const auto& client : clients) {
      for (const auto& [id, echo] : client->echoes) used += echo->memory_bytes();
    }
    return limit > used ? limit - used : 0;
  }

  /// Whether somebody wants this machine's time.
  [[nodiscard]] bool at_work() {
    forget_gone_sessions();
    return !holding_memory.empty() ||
           std::ranges::any_of(clients, [](const auto& each) { return !each->echoes.empty(); });
  }

  void forget_gone_sessions() {
    std::erase_if(holding_memory, [](const auto& session) { return session.expired(); });
  }

  [[nodiscard]] rpc::PeerInfo self_info() {
    rpc::PeerInfo info;
    info.name = options.name;
    info.software_version = RECUA_VERSION;
    info.memory_free_bytes = memory_free();
    info.memory_total_bytes =
        options.memory_bytes != 0 ? options.memory_bytes : sys::memory_info().total_bytes;
    info.n_threads = static_cast<std::uint32_t>(options.n_threads);
    info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kEcho));
    info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTensorSplit));
    info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kLora));
    if (options.make_training) {
      info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kTraining));
    }
    if (measurements.is_there()) {
      info.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kMeasure));
    }
    for (const quant::DataType type : quant::kAllDataTypes) {
      info.data_types.push_back(static_cast<std::uint32_t>(type));
    }
    info.shared_memory_host = options.shared_memory_host;
    info.rdma_ports = options.rdma_ports;
    return info;
  }

  [[nodiscard]] std::shared_ptr<ChannelHost> find_host(std::uint64_t id) const {
    for (const auto& client : clients) {
      if (const auto found = client->sessions.find(id); found != client->sessions.end()) {
        return found->second;
      }
      if (const auto found = client->echoes.find(id); found != client->echoes.end()) {
        return found->second;
      }
      if (const auto found = client->trainings.find(id); found != client->trainings.end()) {
        return found->second;
      }
    }
    return nullptr;
  }

  asio::awaitable<void> serve_connection(std::unique_ptr<net::Connection> connection);
  asio::awaitable<void> serve_control(std::unique_ptr<net::Connection> connection,
                                      rpc::PeerInfo peer);
  asio::awaitable<void> serve_channel(std::unique_ptr<net::Connection> connection,
                                      rpc::ServerHandshake handshake);
  asio::awaitable<Result<wire::ControlMessage>> answer(std::shared_ptr<Client> client,
                                                       wire::ControlMessage request);
  asio::awaitable<Result<wire::ControlMessage>> load(std::shared_ptr<Client> client,
                                                     const wire::LoadSlice& message);
  asio::awaitable<Result<wire::ControlMessage>> open_channel(std::shared_ptr<Client> client,
                                                             const wire::OpenChannel& message);
  SessionEvents session_events(const std::shared_ptr<Client>& client, rpc::ChannelId id) const;
  Result<wire::ControlMessage> start(const std::shared_ptr<Client>& client,
                                     const wire::StartSession& message);
  Result<wire::ControlMessage> open_echo(Client& client, const wire::OpenEcho& message);
  static Result<wire::ControlMessage> start_echo(const std::shared_ptr<Client>& client,
                                                 EchoSession& echo);
  asio::awaitable<Result<wire::ControlMessage>> close_session(std::shared_ptr<Client> client,
                                                              const wire::CloseSession& message);
  asio::awaitable<Result<wire::ControlMessage>> open_training(std::shared_ptr<Client> client,
                                                              const wire::OpenTraining& message);
  /// Whether another session may be opened under this id.
  Result<void> check_new_session(std::uint64_t id);

  net::Env env;
  WorkerOptions options;
  MeasureHost measurements;
  std::mutex compute_mutex;
  SessionEnv session_env;
  std::set<std::shared_ptr<Client>> clients;
  std::set<net::Connection*> handshaking;                  // Closed by stop().
  std::vector<std::weak_ptr<ChannelHost>> holding_memory;  // Sessions that may still hold memory.
  std::size_t n_connections = 0;
  bool stopped = false;
};

Worker::Worker(net::Env env, Offload& offload, DeviceFactory make_device, WorkerOptions options)
    : state_(std::make_shared<State>(std::move(env), offload, std::move(make_device),
                                     std::move(options))) {}

Worker::~Worker() { stop(); }

std::size_t Worker::n_sessions() const {
  std::size_t n = 0;
  for (const auto& client : state_->clients) n += client->sessions.size();
  return n;
}

void Worker::stop() {
  if (std::exchange(state_->stopped, true)) return;
  const std::set<net::Connection*> handshaking = state_->handshaking;
  for (net::Connection* connection : handshaking) connection->close();
  const auto clients = state_->clients;
  for (const auto& client : clients) {
    client->lost = true;
    client->gone.notify_all();
  }
}

asio::awaitable<Result<void>> Worker::serve(net::Listener& listener) {
  const std::shared_ptr<State> state = state_;
  while (!state->stopped) {
    Result<std::unique_ptr<net::Connection>> accepted = co_await listener.accept();
    if (!accepted.ok()) {
      if (state->stopped || accepted.error().code == ErrorCode::kCancelled) break;
      // Out of descriptors, say: others may close some. Never spin on it.
      log_warning("cannot accept a connection: {}", accepted.error().message);
      co_await state->env.clock->sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    if (state->n_connections >= state->options.connections_max) {
      log_warning("{}: refused, {} connections are open already", (*accepted)->peer(),
                  state->n_connections);
      continue;
    }
    asio::co_spawn(state->env.executor, state->serve_connection(std::move(*accepted)),
                   asio::detached);
  }
  co_return ok();
}

asio::awaitable<void> Worker::State::serve_connection(std::unique_ptr<net::Connection> connection) {
  const auto self = shared_from_this();
  ++n_connections;
  handshaking.insert(connection.get());
  rpc::PeerInfo info = self_info();
  Result<rpc::ServerHandshake> handshake =
      co_await rpc::server_handshake(env, *connection, info, options.handshake_timeout);
  handshaking.erase(connection.get());
  if (!handshake.ok()) {
    log_warning("dropped: {}", handshake.error().message);
  } else if (stopped) {
    connection->close();
  } else if (handshake->channel.has_value()) {
    co_await serve_channel(std::move(connection), std::move(*handshake));
  } else {
    co_await serve_control(std::move(connection), std::move(handshake->peer));
  }
  --n_connections;
}

asio::awaitable<void> Worker::State::serve_channel(std::unique_ptr<net::Connection> connection,
                                                   rpc::ServerHandshake handshake) {
  const rpc::ChannelRequest request = *handshake.channel;
  const rpc::PeerInfo peer_info = handshake.peer;
  const std::shared_ptr<ChannelHost> host = find_host(request.id.session);
  Result<rpc::RingShape> ring = Error{
      ErrorCode::kNotFound,
      fmt::format("no session {:016x} with epoch {} here", request.id.session, request.id.epoch)};
  if (host != nullptr && host->id().epoch == request.id.epoch) ring = host->ring(request);
  if (!ring.ok()) {
    Error error = ring.error();
    co_await rpc::reject(env, *connection, std::move(error));
    co_return;
  }
  rpc::PeerInfo info = self_info();
  const std::string peer = connection->peer();
  const rpc::Secret secret = host->secret();
  const Result<void> accepted = co_await rpc::accept_channel(
      env, *connection, info, std::move(handshake), secret, *ring, options.handshake_timeout);
  if (!accepted.ok()) {
    log_warning("dropped: {}", accepted.error().message);
    co_return;
  }
  const Result<void> attached = host->attach(std::move(connection), request, peer_info);
  if (!attached.ok()) log_warning("{}: dropped: {}", peer, attached.error().message);
}

asio::awaitable<void> Worker::State::serve_control(std::unique_ptr<net::Connection> connection,
                                                   rpc::PeerInfo peer) {
  const auto self = shared_from_this();
  const auto client = std::make_shared<Client>(env.executor);
  const std::string address = connection->peer();
  log_info("{} ({}) connected", address, peer.name);
  client->peer = std::move(peer);
  rpc::ControlHandlers handlers;
  handlers.on_request =
      [self, weak = std::weak_ptr<Client>(client)](
          wire::ControlMessage request) -> asio::awaitable<Result<wire::ControlMessage>> {
    std::shared_ptr<Client> alive = weak.lock();
    if (alive == nullptr)
      return [](Error e) -> asio::awaitable<Result<wire::ControlMessage>> {
        co_return e;
      }(Error{ErrorCode::kCancelled, "the connection is closing"});
    return self->answer(std::move(alive), std::move(request));
  };
  handlers.on_notice = [weak = std::weak_ptr<Client>(client)](const wire::ControlMessage& notice) {
    const auto alive = weak.lock();
    if (alive == nullptr || !notice.has_train_step()) return;
    const auto found = alive->trainings.find(notice.train_step().session());
    if (found != alive->trainings.end()) found->second->take_step(notice.train_step());
  };
  handlers.on_lost = [address, weak = std::weak_ptr<Client>(client)](const Error& error) {
    if (const auto alive = weak.lock()) {
      log_info("{} left: {}", address, error.message);
      alive->lost = true;
      alive->gone.notify_all();
    }
  };
  clients.insert(client);
  client->control = std::make_unique<rpc::ControlConnection>(env, std::move(connection),
                                                             options.control, std::move(handlers));
  while (!client->lost && !stopped) co_await client->gone.wait();
  client->control->close();
  for (const auto& [id, session] : client->sessions) session->close();
  client->sessions.clear();
  for (const auto& [id, echo] : client->echoes) echo->close();
  client->echoes.clear();
  for (const auto& [id, training] : client->trainings) training->close();
  client->trainings.clear();
  clients.erase(client);
}

asio::awaitable<Result<wire::ControlMessage>> Worker::State::answer(std::shared_ptr<Client> client,
                                                                    wire::ControlMessage request) {
  const auto self = shared_from_this();
  if (stopped || client->lost) {
    co_return Error{ErrorCode::kCancelled, "the worker is stopping, or its connection is"};
  }
  switch (request.body_case()) {
    case wire::ControlMessage::kLoadSlice: {
      Result<wire::ControlMessage> reply = co_await load(client, request.load_slice());
      if (!reply.ok()) {
        log_warning("{}: cannot load a slice: {}", client->control->peer(), reply.error().message);
      }
      co_return reply;
    }
    case wire::ControlMessage::kOpenChannel: {
      Result<wire::ControlMessage> reply = co_await open_channel(client, request.open_channel());
      co_return reply;
    }
    case wire::ControlMessage::kOpenTraining: {
      Result<wire::ControlMessage> reply = co_await open_training(client, request.open_training());
      if (!reply.ok()) {
        log_warning("{}: cannot train: {}", client->control->peer(), reply.error().message);
      }
      co_return reply;
    }
    case wire::ControlMessage::kTrainState: {
      const wire::TrainState& piece = request.train_state();
      RECUA_CO_ASSIGN_OR_RETURN(
          const auto training,
          own_session(client->trainings, {.session = piece.session(), .epoch = piece.epoch()}));
      RECUA_CO_RETURN_IF_ERROR(training->add_state(piece));
      co_return done();
    }
    case wire::ControlMessage::kMeasureSpeed: {
      Result<wire::ControlMessage> reply = co_await measurements.speed(request.measure_speed());
      co_return reply;
    }
    case wire::ControlMessage::kMeasureLink: {
      Result<wire::ControlMessage> reply = co_await measurements.link(request.measure_link());
      co_return reply;
    }
    case wire::ControlMessage::kOpenEcho:
      co_return open_echo(*client, request.open_echo());
    case wire::ControlMessage::kStartSession:
      if (const auto echo = client->echoes.find(request.start_session().session());
          echo != client->echoes.end()) {
        co_return start_echo(client, *echo->second);
      }
      if (client->trainings.contains(request.start_session().session())) {
        RECUA_CO_ASSIGN_OR_RETURN(const auto training,
                                  own_session(client->trainings, id_of(request.start_session())));
        RECUA_CO_RETURN_IF_ERROR(training->start());
        co_return done();
      }
      co_return start(client, request.start_session());
    case wire::ControlMessage::kCloseSession: {
      Result<wire::ControlMessage> reply = co_await close_session(client, request.close_session());
      co_return reply;
    }
    default:
      co_return Error{ErrorCode::kUnsupported, "a worker does not answer this kind of request"};
  }
}

asio::awaitable<Result<wire::ControlMessage>> Worker::State::load(std::shared_ptr<Client> client,
                                                                  const wire::LoadSlice& message) {
  const auto self = shared_from_this();
  RECUA_CO_ASSIGN_OR_RETURN(Session::Request request, Session::parse(message));
  RECUA_CO_RETURN_IF_ERROR(check_new_session(request.id.session));
  const std::uint64_t id = request.id.session;
  const std::string description = fmt::format(
      "{}, layers {}-{}", request.model, request.slice.layer_begin, request.slice.layer_end - 1);
  const rpc::ChannelId channel_id = request.id;
  const auto session = std::make_shared<Session>(session_env, std::move(request),
                                                 session_events(client, channel_id));
  client->sessions[id] = session;
  holding_memory.push_back(session);

  ChunkSource source = make_chunk_source(channel_id, call_coordinator(client),
                                         client->peer.has(rpc::Feature::kPushChunks));
  const Result<void> loaded = co_await session->load(std::move(source));
  if (!loaded.ok()) {
    session->close();
    const auto found = client->sessions.find(id);
    if (found != client->sessions.end() && found->second == session) client->sessions.erase(found);
    co_return Error(loaded.error());
  }
  const SourceCounts& counts = session->counts();
  log_info("loaded {}: {} from files, {} from the cache, {} fetched", description,
           format_bytes(counts.from_file), format_bytes(counts.from_cache),
           format_bytes(counts.fetched));
  wire::ControlMessage reply;
  reply.mutable_loaded()->set_session(id);
  reply.mutable_loaded()->set_bytes(session->memory_bytes());
  reply.mutable_loaded()->set_bytes_local(counts.from_file);
  reply.mutable_loaded()->set_bytes_cached(counts.from_cache);
  reply.mutable_loaded()->set_bytes_fetched(counts.fetched);
  for (const std::string& note : session->notes()) {
    reply.mutable_loaded()->add_notes(rpc::wire_text(note, kNoteBytesMax));
  }
  co_return reply;
}

Result<void> Worker::State::check_new_session(std::uint64_t id) {
  if (find_host(id) != nullptr) {
    return Error{ErrorCode::kProtocol, fmt::format("session {:016x} is loaded already", id)};
  }
  forget_gone_sessions();
  if (holding_memory.size() < kSessionsMax) return ok();
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("{} sessions are open here already, the most that a worker takes",
                           holding_memory.size())};
}

asio::awaitable<Result<wire::ControlMessage>> Worker::State::open_training(
    std::shared_ptr<Client> client, const wire::OpenTraining& message) {
  const auto self = shared_from_this();
  if (!options.make_training) {
    co_return Error{ErrorCode::kUnsupported, "this worker does not train"};
  }
  RECUA_CO_RETURN_IF_ERROR(check_new_session(message.session()));
  const rpc::ChannelId id = id_of(message);
  const SessionEvents events = session_events(client, id);
  TrainingEvents training_events{
      .call = call_coordinator(client), .failed = events.failed, .reported = events.reported};
  RECUA_CO_ASSIGN_OR_RETURN(
      const std::shared_ptr<TrainingSession> training,
      options.make_training(session_env, message, std::move(training_events)));
  client->trainings[id.session] = training;
  holding_memory.push_back(training);
  const Result<void> opened = co_await training->open();
  if (opened.ok()) co_return done();
  training->close();
  const auto found = client->trainings.find(id.session);
  if (found != client->trainings.end() && found->second == training) {
    client->trainings.erase(found);
  }
  co_return Error(opened.error());
}

asio::awaitable<Result<wire::ControlMessage>> Worker::State::open_channel(
    std::shared_ptr<Client> client, const wire::OpenChannel& message) {
  const auto self = shared_from_this();
  const rpc::ChannelId id = id_of(message);
  std::shared_ptr<ChannelHost> session;
  if (client->trainings.contains(id.session)) {
    RECUA_CO_ASSIGN_OR_RETURN(session, own_session(client->trainings, id));
  } else {
    RECUA_CO_ASSIGN_OR_RETURN(session, own_session(client->sessions, id));
  }
  if (message.port() == 0 || message.port() > 65535 || message.host().empty() ||
      message.host().size() > 255) {
    co_return Error{ErrorCode::kProtocol, "open_channel: host or port is out of range"};
  }
  rpc::ChannelRequest request;
  request.id = session->id();
  request.number = message.number();
  request.direction = rpc::Direction::kConnectorSends;
  RECUA_CO_ASSIGN_OR_RETURN(request.secret, secret_from_wire(message.secret()));
  const net::Endpoint endpoint{.host = message.host(),
                               .port = static_cast<std::uint16_t>(message.port())};
  Result<std::unique_ptr<net::Connection>> connected =
      co_await env.network->connect(endpoint, kChannelTimeout);
  if (!connected.ok()) co_return Error(std::move(connected).error());
  rpc::PeerInfo info = self_info();
  Result<rpc::ChannelHandshake> opened =
      co_await rpc::channel_handshake(env, **connected, info, request, options.handshake_timeout);
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

SessionEvents Worker::State::session_events(const std::shared_ptr<Client>& client,
                                            rpc::ChannelId id) const {
  const std::weak_ptr<Client> weak = client;
  SessionEvents events;
  events.progress = [weak, id, clock = env.clock, told = net::TimePoint{}](
                        std::uint64_t n_done, std::uint64_t total, std::uint64_t fetched) mutable {
    const net::TimePoint now = clock->now();
    if (n_done != total && now - told < kProgressInterval) return;
    told = now;
    wire::ControlMessage notice;
    notice.mutable_load_progress()->set_session(id.session);
    notice.mutable_load_progress()->set_bytes_done(n_done);
    notice.mutable_load_progress()->set_bytes_total(total);
    notice.mutable_load_progress()->set_bytes_fetched(fetched);
    if (const auto alive = weak.lock()) alive->tell(std::move(notice));
  };
  events.failed = [weak, id](const Error& error) {
    // The coordinator is told and decides; when it closes a session itself, a neighbour's end of
    // the channel may come first.
    log_debug("session {:016x} ended: {}", id.session, error.message);
    if (const auto alive = weak.lock()) alive->tell(failed_notice(id, error));
  };
  events.reported = [weak, id](const rpc::LinkStats& link, std::uint32_t number,
                               const std::string& text) {
    log_info("{}", text);
    wire::ControlMessage notice;
    *notice.mutable_link_report() = link_report_to_wire(id, link, number, text);
    if (const auto alive = weak.lock()) alive->tell(std::move(notice));
  };
  return events;
}

Result<wire::ControlMessage> Worker::State::start(const std::shared_ptr<Client>& client,
                                                  const wire::StartSession& message) {
  RECUA_ASSIGN_OR_RETURN(const std::shared_ptr<Session> session,
                         own_session(client->sessions, id_of(message)));
  RECUA_RETURN_IF_ERROR(session->start());
  return done();
}

Result<wire::ControlMessage> Worker::State::open_echo(Client& client,
                                                      const wire::OpenEcho& message) {
  RECUA_ASSIGN_OR_RETURN(const EchoSession::Request request, EchoSession::parse(message));
  if (find_host(request.id.session) != nullptr) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("session {:016x} is open already", request.id.session)};
  }
  std::size_t n_open = 0;
  for (const auto& other : clients) n_open += other->echoes.size();
  if (n_open >= kEchoSessionsMax) {
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("{} measurements are open here already, the most that a worker takes", n_open)};
  }
  if (const std::uint64_t free = memory_free(); request.ring_bytes() > free) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("open_echo asks for a ring of {}, but {} are free here",
                             format_bytes(request.ring_bytes()), format_bytes(free))};
  }
  RECUA_ASSIGN_OR_RETURN(
      client.echoes[request.id.session],
      EchoSession::create(env, *session_env.offload, options.name, request, options.link_policy));
  return done();
}

Result<wire::ControlMessage> Worker::State::start_echo(const std::shared_ptr<Client>& client,
                                                       EchoSession& echo) {
  const rpc::ChannelId id = echo.id();
  RECUA_RETURN_IF_ERROR(echo.start([weak = std::weak_ptr<Client>(client), id](const Error& error) {
    log_debug("measurement {:016x} ended: {}", id.session, error.message);
    if (const auto alive = weak.lock()) alive->tell(failed_notice(id, error));
  }));
  return done();
}

asio::awaitable<Result<wire::ControlMessage>> Worker::State::close_session(
    std::shared_ptr<Client> client, const wire::CloseSession& message) {
  const auto self = shared_from_this();
  wire::ControlMessage reply;
  const std::uint64_t id = message.session();
  const auto found = client->sessions.find(id);
  const std::shared_ptr<Session> session =
      found == client->sessions.end() ? nullptr : found->second;
  if (session != nullptr) {
    session->close();
    client->sessions.erase(found);
  }
  if (const auto echo = client->echoes.find(id); echo != client->echoes.end()) {
    echo->second->close();
    client->echoes.erase(echo);
    co_return done();
  }
  if (const auto training = client->trainings.find(id); training != client->trainings.end()) {
    const std::shared_ptr<TrainingSession> alive = training->second;
    alive->close();
    client->trainings.erase(training);
    co_await alive->wait_until_ended(kTrainingEndTimeout);
    co_return done();
  }
  if (!client->peer.has(rpc::Feature::kLinks)) {
    reply.mutable_done();
    co_return reply;
  }
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
