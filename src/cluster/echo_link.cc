#include "cluster/echo_link.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/echo_session.h"
#include "cluster/poll_loop.h"
#include "cluster/wire.h"
#include "net/deadline.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kCallTimeout = std::chrono::seconds(30);
constexpr net::Duration kCloseTimeout = std::chrono::seconds(2);
/// Beyond the time that a measurement is to take: a link may settle, or fail over, meanwhile.
constexpr net::Duration kPatience = std::chrono::seconds(30);
/// Heartbeats and Ctrl-C get their turn so often.
constexpr net::Duration kLoopTurn = std::chrono::milliseconds(20);
/// Fewer say nothing; a slow link may take longer than asked for instead.
constexpr std::uint64_t kSamplesMin = 5;
/// A link that keeps changing says the same again and again.
constexpr std::size_t kReportsMax = 64;

}  // namespace

asio::awaitable<Result<std::shared_ptr<EchoPeer>>> EchoPeer::connect(net::Env env,
                                                                     net::Endpoint worker,
                                                                     rpc::PeerInfo self,
                                                                     net::Duration connect_timeout,
                                                                     rpc::ControlOptions control) {
  self.name = "link test";
  self.software_version = RECUA_VERSION;
  self.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kEcho));
  const std::shared_ptr<EchoPeer> peer(new EchoPeer(env, worker, self, connect_timeout));
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env.network->connect(worker, connect_timeout);
  if (!connection.ok()) co_return std::move(connection).error().within(peer->name());
  Result<rpc::PeerInfo> info =
      co_await rpc::client_handshake(env, **connection, self, connect_timeout);
  if (!info.ok()) co_return std::move(info).error().within(peer->name());
  peer->info_ = std::move(*info);
  if (!peer->info_.has(rpc::Feature::kEcho)) {
    co_return Error{
        ErrorCode::kUnsupported,
        fmt::format("{} runs recua {}, which does not answer measurements: update it (this is {})",
                    peer->name(), peer->info_.software_version, RECUA_VERSION)};
  }
  const std::weak_ptr<EchoPeer> weak = peer;
  rpc::ControlHandlers handlers;
  handlers.on_notice = [weak](const wire::ControlMessage& notice) {
    if (const auto alive = weak.lock()) alive->take_notice(notice);
  };
  handlers.on_lost = [weak](const Error& error) {
    const auto alive = weak.lock();
    if (alive == nullptr) return;
    alive->failure_ = Error{ErrorCode::kUnavailable, alive->name() + ": " + error.message};
    alive->wake_->notify_all();
  };
  peer->control_ = std::make_unique<rpc::ControlConnection>(env, std::move(*connection), control,
                                                            std::move(handlers));
  co_return peer;
}

std::optional<Error> EchoPeer::failure() const {
  // The reason is told by a handler of the loop, which may not have had its turn yet.
  if (failure_ || control_ == nullptr || !control_->lost()) return failure_;
  return Error{ErrorCode::kUnavailable, name() + ": the connection to it broke"};
}

void EchoPeer::take_notice(const wire::ControlMessage& notice) {
  if (!notice.has_session_failed() || notice.session_failed().session() != session_) return;
  session_failure_ =
      rpc::from_peer(name(), notice.session_failed().code(), notice.session_failed().message());
  wake_->notify_all();
}

asio::awaitable<Result<wire::ControlMessage>> EchoPeer::call(wire::ControlMessage request) {
  Result<wire::ControlMessage> reply = co_await control_->call(std::move(request), kCallTimeout);
  if (!reply.ok()) co_return std::move(reply).error().within(name());
  co_return reply;
}

asio::awaitable<Result<std::unique_ptr<net::Connection>>> EchoPeer::open_channel(
    rpc::ChannelRequest request, rpc::ChannelHandshake& agreed) {
  Result<std::unique_ptr<net::Connection>> connection =
      co_await env_.network->connect(endpoint_, connect_timeout_);
  if (!connection.ok()) co_return std::move(connection).error().within(name());
  const rpc::PeerInfo self = self_;
  Result<rpc::ChannelHandshake> opened =
      co_await rpc::channel_handshake(env_, **connection, self, request, connect_timeout_);
  if (!opened.ok()) co_return std::move(opened).error().within(name());
  agreed = std::move(*opened);
  co_return connection;
}

asio::awaitable<Result<std::unique_ptr<EchoLink>>> EchoLink::open(std::shared_ptr<EchoPeer> peer,
                                                                  Options options) {
  std::unique_ptr<EchoLink> link(new EchoLink(std::move(peer), std::move(options)));
  const Result<void> opened = co_await link->open_channels();
  if (!opened.ok()) {
    co_await link->close();
    co_return Error(opened.error());
  }
  co_return link;
}

asio::awaitable<Result<void>> EchoLink::open_channels() {
  const net::Env& env = peer_->env_;
  id_ = {.session = env.random(), .epoch = 1};
  const rpc::Secret secret = rpc::make_secret(env);
  const rpc::RingShape shape{
      .n_slots = options_.window,
      .slot_bytes = align_up<std::uint64_t>(rpc::kTensorHeaderBytes + options_.rows_bytes_max, 64)};
  peer_->session_ = id_.session;
  peer_->session_failure_.reset();
  wire::ControlMessage request;
  wire::OpenEcho& echo = *request.mutable_open_echo();
  echo.set_session(id_.session);
  echo.set_epoch(id_.epoch);
  echo.set_secret(secret_to_wire(secret));
  echo.set_slot_bytes(shape.slot_bytes);
  echo.set_n_slots(shape.n_slots);
  for (const wire::Transport transport : options_.transports) echo.add_transports(transport);
  RECUA_CO_RETURN_IF_ERROR(co_await peer_->call(std::move(request)));

  rpc::ChannelRequest there;
  there.id = id_;
  there.number = 0;
  there.direction = rpc::Direction::kConnectorSends;
  there.secret = secret;
  rpc::ChannelHandshake agreed;
  RECUA_CO_ASSIGN_OR_RETURN(auto out, co_await peer_->open_channel(there, agreed));
  rpc::ChannelRequest back = there;
  back.number = 1;
  back.direction = rpc::Direction::kAcceptorSends;
  back.ring = shape;
  rpc::ChannelHandshake ignored;
  RECUA_CO_ASSIGN_OR_RETURN(auto in, co_await peer_->open_channel(back, ignored));
  wire::ControlMessage begin;
  begin.mutable_start_session()->set_session(id_.session);
  begin.mutable_start_session()->set_epoch(id_.epoch);
  RECUA_CO_RETURN_IF_ERROR(co_await peer_->call(std::move(begin)));

  RECUA_CO_ASSIGN_OR_RETURN(ring_, RingBuffer::create(nullptr, shape, &options_.policy));
  // One buffer per message under way, as a stage has.
  RECUA_CO_ASSIGN_OR_RETURN(
      rows_, sys::AlignedBuffer::allocate(std::max<std::uint64_t>(
                 options_.rows_bytes_max, std::uint64_t{options_.window} * options_.stream_bytes)));
  for (std::byte& byte : rows_.bytes()) byte = static_cast<std::byte>(&byte - rows_.data());
  rpc::LinkContext context;
  context.env = env;
  context.policy = &options_.policy;
  context.self = "here";
  context.other = peer_->endpoint_.to_string();
  context.report = [reports = reports_](const std::string& line) {
    log_debug("{}", line);
    if (reports->size() < kReportsMax) reports->push_back(line);
  };
  std::vector<std::span<std::byte>> sources(1, rows_.bytes());
  out_ = rpc::make_link_sender(context, std::move(out), agreed.ring, std::move(sources),
                               agreed.peer.features);
  RECUA_CO_ASSIGN_OR_RETURN(
      in_, rpc::make_link_receiver(context, std::move(in), id_, shape, ring_->memory()));
  co_return ok();
}

asio::awaitable<void> EchoLink::close() {
  out_.reset();
  in_.reset();
  peer_->session_ = 0;
  if (peer_->failure()) co_return;
  wire::ControlMessage request;
  request.mutable_close_session()->set_session(id_.session);
  const Result<wire::ControlMessage> closed =
      co_await peer_->control_->call(std::move(request), kCloseTimeout);
  if (!closed.ok()) log_debug("{}", closed.error().message);
}

asio::awaitable<Result<void>> EchoLink::poll_while(std::function<Result<bool>()> poll,
                                                   std::function<bool()> finished,
                                                   net::Duration duration, std::string what) {
  const net::Env& env = peer_->env_;
  const std::shared_ptr<net::Event> wake = peer_->wake_;
  const net::TimePoint give_up = now() + duration + kPatience;
  const auto timer = env.clock->start_timer(env.executor, give_up, [wake] { wake->notify_all(); });
  const net::ReadyCallback ready = [wake] { wake->notify_all(); };
  std::function<void()> arm = [this, &ready] {
    in_->arm(ready);
    out_->arm(ready, /*for_completions=*/false);
  };
  net::ArmIn arm_in = [this](const net::WaitSet& set) {
    return in_->arm_in(set) && out_->arm_in(set, /*for_completions=*/false);
  };
  net::TimePoint turn_ends;
  std::function<bool()> done = [&] {
    if (finished() || peer_->failure_ || peer_->session_failure_) return true;
    const net::TimePoint time = now();
    return time >= turn_ends || time >= give_up;
  };
  net::SpinBudget budget(env.spin);
  while (!finished()) {
    turn_ends = now() + kLoopTurn;
    const Result<void> polled = co_await poll_until(env, *wake, poll, arm, done, &budget, arm_in);
    if (peer_->failure_) co_return Error(*peer_->failure_);
    // The worker's own words say more than that its end of the channel is gone.
    if (peer_->session_failure_) co_return Error(*peer_->session_failure_);
    if (!polled.ok()) co_return polled;
    if (!finished() && now() >= give_up) {
      co_return Error{ErrorCode::kTimeout,
                      fmt::format("{}: {} did not end within {}", peer_->name(), what,
                                  net::to_string(duration + kPatience))};
    }
    co_await asio::post(env.executor, asio::use_awaitable);
  }
  co_return ok();
}

Result<bool> EchoLink::send(std::uint32_t micro_batch, std::span<const std::byte> rows) {
  rpc::TensorHeader header;
  header.kind = rpc::MessageKind::kStep;
  header.session = id_.session;
  header.epoch = id_.epoch;
  header.micro_batch = micro_batch;
  header.step = n_steps_;
  header.n_rows = 1;
  header.row_bytes = static_cast<std::uint32_t>(rows.size());
  header.last = true;
  RECUA_ASSIGN_OR_RETURN(const bool sent,
                         out_->try_send({.header = header, .rows = rows, .descriptor = {}}));
  if (sent) ++n_steps_;
  return sent;
}

Result<bool> EchoLink::take_answer(std::uint64_t step, std::span<const std::byte> rows,
                                   bool compare) {
  RECUA_ASSIGN_OR_RETURN(const rpc::Incoming* const incoming, in_->poll());
  if (incoming == nullptr) return false;
  if (incoming->header.step != step || incoming->rows.size() != rows.size()) {
    return Error{
        ErrorCode::kProtocol,
        fmt::format("{} answered step {} with {} bytes, due was step {} with {}", peer_->name(),
                    incoming->header.step, incoming->rows.size(), step, rows.size())};
  }
  if (compare && std::memcmp(incoming->rows.data(), rows.data(), rows.size()) != 0) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: {} bytes came back changed", peer_->name(), rows.size())};
  }
  RECUA_RETURN_IF_ERROR(in_->release(incoming->slot));
  return true;
}

asio::awaitable<Result<void>> EchoLink::settle() {
  std::function<Result<bool>()> poll = [this]() -> Result<bool> {
    // The receiver's side of the agreement happens in its poll(); no message can be there yet.
    RECUA_ASSIGN_OR_RETURN(const rpc::Incoming* const incoming, in_->poll());
    if (incoming != nullptr) {
      return Error{ErrorCode::kProtocol,
                   peer_->name() + ": an answer came before anything was sent"};
    }
    return out_->poll();
  };
  std::function<bool()> finished = [this] { return out_->settled(); };
  RECUA_CO_RETURN_IF_ERROR(co_await poll_while(poll, finished, options_.policy.settle_timeout,
                                               "agreeing on a transport"));
  // What the worker's sender runs on is known once something came from it.
  RECUA_CO_RETURN_IF_ERROR(
      co_await round_trips(std::min<std::uint32_t>(64, options_.rows_bytes_max), {}, 1));
  co_return ok();
}

asio::awaitable<Result<std::vector<net::Duration>>> EchoLink::round_trips(std::uint32_t bytes,
                                                                          net::Duration duration,
                                                                          std::uint64_t n_max) {
  std::vector<net::Duration> samples;
  samples.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(n_max, 1U << 16)));
  const std::span<const std::byte> message = rows().first(bytes);
  const net::TimePoint ends = now() + duration;
  net::TimePoint sent_at;
  bool waiting = false;
  bool over = false;
  std::function<Result<bool>()> poll = [&]() -> Result<bool> {
    RECUA_ASSIGN_OR_RETURN(bool moved, out_->poll());
    if (waiting) {
      // Comparing makes caches warm that would not be: the first answers are enough.
      RECUA_ASSIGN_OR_RETURN(const bool answered,
                             take_answer(n_steps_ - 1, message, samples.size() < 2));
      if (!answered) return moved;
      const net::TimePoint time = now();
      samples.push_back(time - sent_at);
      waiting = false;
      over = samples.size() >= n_max || (time >= ends && samples.size() >= kSamplesMin);
      moved = true;
    }
    if (!over) {  // The rows never change, so an earlier message may still be read from them.
      sent_at = now();
      RECUA_ASSIGN_OR_RETURN(waiting, send(kEchoRows, message));
      moved = moved || waiting;
    }
    return moved;
  };
  std::function<bool()> finished = [&over] { return over; };
  RECUA_CO_RETURN_IF_ERROR(
      co_await poll_while(poll, finished, duration, fmt::format("measuring {} bytes", bytes)));
  co_return samples;
}

asio::awaitable<Result<EchoLink::Stream>> EchoLink::stream(net::Duration duration,
                                                           std::uint64_t n_max) {
  const std::uint64_t window = options_.window;
  const std::size_t bytes = options_.stream_bytes;
  const net::TimePoint begins = now();
  const std::uint64_t first_step = n_steps_;
  Stream out;
  bool over = false;
  std::function<Result<bool>()> poll = [&]() -> Result<bool> {
    RECUA_ASSIGN_OR_RETURN(bool moved, out_->poll());
    while (out.n_messages < n_steps_ - first_step) {
      RECUA_ASSIGN_OR_RETURN(const bool answered,
                             take_answer(first_step + out.n_messages, {}, false));
      if (!answered) break;
      ++out.n_messages;
      out.took = now() - begins;
      moved = true;
    }
    const std::uint64_t n_sent = n_steps_ - first_step;
    if (n_sent >= n_max || (n_sent >= 2 * window && now() - begins >= duration)) {
      over = out.n_messages == n_sent;
    } else if (n_sent - out.n_messages < window) {
      RECUA_ASSIGN_OR_RETURN(
          const bool sent,
          send(kEchoAcknowledge, rows().subspan((n_sent % window) * bytes, bytes)));
      moved = moved || sent;
    }
    return moved;
  };
  std::function<bool()> finished = [&over] { return over; };
  RECUA_CO_RETURN_IF_ERROR(co_await poll_while(poll, finished, duration, "measuring bandwidth"));
  co_return out;
}

}  // namespace recua::cluster
