#include "cluster/worker_client.h"

#include <string>
#include <utility>

#include "base/log.h"
#include "cluster/link_wire.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// Progress is told at most so often.
constexpr net::Duration kProgressInterval = std::chrono::milliseconds(100);

template <class Host>
std::shared_ptr<ChannelHost> find_in(const std::map<std::uint64_t, std::shared_ptr<Host>>& sessions,
                                     std::uint64_t id) {
  const auto found = sessions.find(id);
  return found == sessions.end() ? nullptr : found->second;
}

}  // namespace

Client::Client(std::shared_ptr<WorkerState> worker, rpc::PeerInfo peer)
    : worker_(std::move(worker)), peer_(std::move(peer)), gone_(worker_->env.executor) {}

std::shared_ptr<ChannelHost> Client::find_host(std::uint64_t id) const {
  if (auto session = find_in(sessions_, id); session != nullptr) return session;
  if (auto echo = find_in(echoes_, id); echo != nullptr) return echo;
  return find_in(trainings_, id);
}

std::uint64_t Client::echo_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [id, echo] : echoes_) bytes += echo->memory_bytes();
  return bytes;
}

asio::awaitable<void> Client::serve(std::unique_ptr<net::Connection> connection) {
  const auto self = shared_from_this();
  const std::string address = connection->peer();
  log_info("{} ({}) connected", address, peer_.name);
  const std::weak_ptr<Client> weak = self;
  rpc::ControlHandlers handlers;
  handlers.on_request = [weak](wire::ControlMessage request) -> asio::awaitable<Reply> {
    const auto alive = weak.lock();
    if (alive == nullptr) co_return Error{ErrorCode::kCancelled, "the connection is closing"};
    Reply reply = co_await alive->answer(std::move(request));
    co_return reply;
  };
  handlers.on_notice = [weak](const wire::ControlMessage& notice) {
    const auto alive = weak.lock();
    if (alive == nullptr || !notice.has_train_step()) return;
    const auto found = alive->trainings_.find(notice.train_step().session());
    if (found != alive->trainings_.end()) found->second->take_step(notice.train_step());
  };
  handlers.on_lost = [address, weak](const Error& error) {
    if (const auto alive = weak.lock()) {
      log_info("{} left: {}", address, error.message);
      alive->end();
    }
  };
  control_ = std::make_unique<rpc::ControlConnection>(
      worker_->env, std::move(connection), worker_->options.control, std::move(handlers));
  while (!lost_) co_await gone_.wait();
  control_->close();
  for (const auto& [id, session] : sessions_) session->close();
  sessions_.clear();
  for (const auto& [id, echo] : echoes_) echo->close();
  echoes_.clear();
  for (const auto& [id, training] : trainings_) training->close();
  trainings_.clear();
}

void Client::end() {
  lost_ = true;
  gone_.notify_all();
}

asio::awaitable<Client::Reply> Client::answer(wire::ControlMessage request) {
  const auto self = shared_from_this();
  if (lost_) {
    co_return Error{ErrorCode::kCancelled, "the worker is stopping, or its connection is"};
  }
  switch (request.body_case()) {
    case wire::ControlMessage::kLoadSlice: {
      Reply reply = co_await load(request.load_slice());
      if (!reply.ok()) {
        log_warning("{}: cannot load a slice: {}", control_->peer(), reply.error().message);
      }
      co_return reply;
    }
    case wire::ControlMessage::kOpenChannel: {
      Reply reply = co_await open_channel(request.open_channel());
      co_return reply;
    }
    case wire::ControlMessage::kOpenTraining: {
      Reply reply = co_await open_training(request.open_training());
      if (!reply.ok()) {
        log_warning("{}: cannot train: {}", control_->peer(), reply.error().message);
      }
      co_return reply;
    }
    case wire::ControlMessage::kTrainState:
      co_return add_state(request.train_state());
    case wire::ControlMessage::kMeasureSpeed: {
      Reply reply = co_await worker_->measurements.speed(request.measure_speed());
      co_return reply;
    }
    case wire::ControlMessage::kMeasureLink: {
      Reply reply = co_await worker_->measurements.link(request.measure_link());
      co_return reply;
    }
    case wire::ControlMessage::kOpenEcho:
      co_return open_echo(request.open_echo());
    case wire::ControlMessage::kStartSession:
      co_return start(request.start_session());
    case wire::ControlMessage::kCloseSession: {
      Reply reply = co_await close_session(request.close_session());
      co_return reply;
    }
    default:
      co_return Error{ErrorCode::kUnsupported, "a worker does not answer this kind of request"};
  }
}

void Client::tell(wire::ControlMessage notice) const {
  if (lost_) return;
  if (const auto sent = control_->notify(std::move(notice)); !sent.ok()) {
    log_debug("a notice was not sent: {}", sent.error().message);
  }
}

void Client::tell_failed(rpc::ChannelId id, const Error& error) const {
  wire::ControlMessage notice;
  notice.mutable_session_failed()->set_session(id.session);
  notice.mutable_session_failed()->set_epoch(id.epoch);
  notice.mutable_session_failed()->set_code(rpc::to_wire(error.code));
  notice.mutable_session_failed()->set_message(rpc::wire_text(error.message, 2048));
  tell(std::move(notice));
}

CallCoordinator Client::call_coordinator() {
  return [weak = weak_from_this()](wire::ControlMessage ask,
                                   net::Duration timeout) -> asio::awaitable<Reply> {
    const std::shared_ptr<Client> alive = weak.lock();
    if (alive == nullptr || alive->lost_) {
      co_return Error{ErrorCode::kCancelled, "the coordinator left while it was asked"};
    }
    Reply reply = co_await alive->control_->call(std::move(ask), timeout);
    co_return reply;
  };
}

SessionEvents Client::session_events(rpc::ChannelId id) {
  const std::weak_ptr<Client> weak = weak_from_this();
  SessionEvents events;
  events.progress = [weak, id, clock = worker_->env.clock, told = net::TimePoint{}](
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
    if (const auto alive = weak.lock()) alive->tell_failed(id, error);
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

}  // namespace recua::cluster
