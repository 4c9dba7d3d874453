// An answer with rows leaves from the slot in which they arrived, so what is measured is what a
// stage pays: no copy on the way. The slot goes back when the sender no longer reads it.
#include "cluster/echo_session.h"

#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "cluster/poll_loop.h"
#include "cluster/wire.h"

namespace recua::cluster {

namespace asio = boost::asio;

Result<bool> Echo::poll() {
  RECUA_ASSIGN_OR_RETURN(bool moved, out_->poll());
  // In the order in which they came: slots are given back in turn.
  while (!held_.empty() && out_->n_completed() >= held_.front().n_completed) {
    RECUA_RETURN_IF_ERROR(in_->release(held_.front().slot));
    held_.pop_front();
    moved = true;
  }
  if (incoming_ == nullptr) {
    RECUA_ASSIGN_OR_RETURN(incoming_, in_->poll());
    moved = moved || incoming_ != nullptr;
  }
  if (incoming_ != nullptr && out_->credits() > 0) {
    RECUA_RETURN_IF_ERROR(answer(*std::exchange(incoming_, nullptr)));
    moved = true;
  }
  return moved;
}

Result<void> Echo::answer(const rpc::Incoming& incoming) {
  rpc::TensorHeader header = incoming.header;
  if (header.kind != rpc::MessageKind::kStep || header.micro_batch > kEchoAcknowledge) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{}: kind {} with micro-batch {} does not belong into a measurement",
                             in_->peer(), static_cast<int>(header.kind), header.micro_batch)};
  }
  header.session = id_.session;
  header.epoch = id_.epoch;
  header.descriptor_bytes = 0;
  std::span<const std::byte> rows = incoming.rows;
  if (header.micro_batch == kEchoAcknowledge) {
    header.n_rows = 0;
    header.row_bytes = 0;
    rows = {};
  }
  const rpc::Outgoing message{.header = header, .rows = rows, .descriptor = {}};
  RECUA_ASSIGN_OR_RETURN(const bool sent, out_->try_send(message));
  RECUA_CHECK(sent);  // poll() looked for a credit, and nobody else sends here.
  held_.push_back({.slot = incoming.slot, .n_completed = rows.empty() ? 0 : out_->n_sent()});
  return ok();
}

asio::awaitable<Result<void>> Echo::drive(net::Env env) {
  wake_ = std::make_shared<net::Event>(env.executor);
  const std::shared_ptr<net::Event> wake = wake_;
  std::function<Result<bool>()> poll_fn = [this] { return poll(); };
  const net::ReadyCallback ready = [event = wake_] { event->notify_all(); };
  std::function<void()> arm_fn = [this, ready] {
    if (incoming_ == nullptr) in_->arm(ready);
    // Slots go back when answers have left: soon enough before the peer has none.
    out_->arm(ready, 2 * held_.size() >= in_->ring().n_slots);
  };
  net::ArmIn arm_in = [this](const net::WaitSet& set) {
    if (!rpc::arm_or_leave(*in_, set, incoming_ == nullptr)) return false;
    return out_->arm_in(set, 2 * held_.size() >= in_->ring().n_slots);
  };
  std::function<bool()> done_fn = [this] { return stop_requested_.load(); };
  Result<void> ended = co_await poll_until(env, *wake, poll_fn, arm_fn, done_fn, nullptr, arm_in);
  in_.reset();
  out_.reset();
  co_return ended;
}

void Echo::wake() {
  if (wake_ != nullptr) wake_->notify_all();
}

Result<EchoSession::Request> EchoSession::parse(const wire::OpenEcho& message) {
  Request request;
  request.id = {.session = message.session(), .epoch = message.epoch()};
  RECUA_ASSIGN_OR_RETURN(request.secret, secret_from_wire(message.secret()));
  request.ring = {.n_slots = message.n_slots(), .slot_bytes = message.slot_bytes()};
  if (request.ring.n_slots == 0 || request.ring.n_slots > kEchoSlotsMax) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("open_echo.n_slots is {}, need 1 to {}",
                                                          request.ring.n_slots, kEchoSlotsMax)};
  }
  if (request.ring.slot_bytes < rpc::kTensorHeaderBytes ||
      request.ring.slot_bytes > kEchoSlotBytesMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("open_echo.slot_bytes is {}, need {} to {}", request.ring.slot_bytes,
                             rpc::kTensorHeaderBytes, kEchoSlotBytesMax)};
  }
  for (const int transport : message.transports()) {  // Unknown ones are a newer program's.
    request.rdma = request.rdma || transport == wire::TRANSPORT_RDMA;
    request.shared_memory = request.shared_memory || transport == wire::TRANSPORT_SHARED_MEMORY;
  }
  return request;
}

Result<std::shared_ptr<EchoSession>> EchoSession::create(net::Env env, Offload& offload,
                                                         std::string name, const Request& request,
                                                         const rpc::LinkPolicy* policy) {
  auto session = std::shared_ptr<EchoSession>(
      new EchoSession(std::move(env), offload, std::move(name), request));
  if (policy != nullptr) session->policy_ = *policy;
  rpc::LinkPolicy& own = session->policy_;
  if (own.allow_rdma && !request.rdma) {
    own.allow_rdma = false;
    own.no_rdma_reason = kNoRdmaAsked;
  }
  own.allow_shared_memory = own.allow_shared_memory && request.shared_memory;
  RECUA_ASSIGN_OR_RETURN(session->ring_, RingBuffer::create(nullptr, request.ring, &own));
  return session;
}

Result<rpc::RingShape> EchoSession::ring(const rpc::ChannelRequest& request) const {
  const bool there = request.direction == rpc::Direction::kConnectorSends;
  if (closed_ || loop_ != nullptr || (there ? in_ : out_) != nullptr) {
    return Error{ErrorCode::kNotFound, fmt::format("measurement {:016x} waits for no channel {}",
                                                   request.id.session, there ? "in" : "out")};
  }
  return request_.ring;
}

Result<void> EchoSession::attach(std::unique_ptr<net::Connection> connection,
                                 const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) {
  RECUA_RETURN_IF_ERROR(ring(request));  // Another connection may have been faster.
  if (request.direction == rpc::Direction::kConnectorSends) {
    in_ = std::move(connection);
    return ok();
  }
  out_ = std::move(connection);
  out_ring_ = request.ring;
  peer_ = peer;
  return ok();
}

Result<void> EchoSession::start(std::function<void(const Error&)> failed) {
  if (in_ == nullptr || out_ == nullptr || loop_ != nullptr) {
    return Error{ErrorCode::kProtocol,
                 "start_session came before both channels of the measurement were open"};
  }
  loop_ = offload_->new_stage_loop();
  net::Env loop_env = env_;
  loop_env.executor = loop_->executor();
  loop_env.run_one = loop_->run_one();
  RECUA_ASSIGN_OR_RETURN(auto in, in_->move_to(loop_->executor()));
  RECUA_ASSIGN_OR_RETURN(auto out, out_->move_to(loop_->executor()));
  in_.reset();
  out_.reset();
  rpc::LinkContext context;
  context.env = loop_env;
  context.policy = &policy_;
  context.self = name_;
  context.other = peer_.name;
  const rpc::RingMemory memory = ring_->memory();
  RECUA_ASSIGN_OR_RETURN(auto receiver, rpc::make_link_receiver(context, std::move(in), request_.id,
                                                                request_.ring, memory));
  auto sender =
      rpc::make_link_sender(context, std::move(out), out_ring_, {memory.bytes}, peer_.features);
  echo_ = std::make_shared<Echo>(request_.id, std::move(receiver), std::move(sender));

  // The control loop may not run out of work before the end has been told there.
  asio::any_io_executor home =
      asio::prefer(env_.executor, asio::execution::outstanding_work.tracked);
  asio::co_spawn(
      loop_->executor(), echo_->drive(loop_env),
      [self = shared_from_this(), home = std::move(home), failed = std::move(failed)](
          std::exception_ptr thrown, Result<void> ended) mutable {
        if (thrown != nullptr) {
          ended = Error{ErrorCode::kResourceExhausted, "the measurement ran out of memory"};
        }
        asio::post(home,
                   [self = std::move(self), failed = std::move(failed), ended = std::move(ended)] {
                     if (!ended.ok() && !self->closed_) failed(ended.error());
                     self->echo_.reset();
                   });
      });
  return ok();
}

void EchoSession::close() {
  if (std::exchange(closed_, true)) return;
  in_.reset();
  out_.reset();
  if (echo_ != nullptr) {
    echo_->request_stop();
    asio::post(loop_->executor(), [echo = std::weak_ptr<Echo>(echo_)] {
      if (const auto alive = echo.lock()) alive->wake();
    });
  }
}

}  // namespace recua::cluster
