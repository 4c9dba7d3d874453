// Each connection has an event channel of its own, so that none sees another's events; a request
// moves from its listener's channel to one of its own as soon as it is read.
#include "net/verbs/cm.h"

#include <algorithm>
#include <arpa/inet.h>
#include <bit>
#include <fcntl.h>
#include <netdb.h>
#include <rdma/rdma_cma.h>
#include <sys/socket.h>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

constexpr int kBacklog = 16;
constexpr std::uint8_t kRetryCountMax = 6;  // As in QueuePair::connect().

using UniqueCmId = std::unique_ptr<rdma_cm_id, VerbsDeleter<rdma_destroy_id>>;
using UniqueCmChannel =
    std::unique_ptr<rdma_event_channel,
                    decltype([](rdma_event_channel* c) { rdma_destroy_event_channel(c); })>;
using UniqueAddress =
    std::unique_ptr<addrinfo, decltype([](addrinfo* list) { freeaddrinfo(list); })>;

Error cm_error(std::string_view call, int system_error) {
  return Error{ErrorCode::kIo,
               fmt::format("rdma_cm: {} failed: {}", call, std::strerror(system_error))};
}

Result<UniqueCmChannel> make_channel() {
  UniqueCmChannel channel(rdma_create_event_channel());
  if (!channel) {
    // librdmacm has given up on the whole: no devices, no module rdma_ucm, or no rights.
    return Error{ErrorCode::kUnsupported,
                 fmt::format("rdma_cm cannot be used here: {} (is the kernel's module rdma_ucm "
                             "loaded?)",
                             std::strerror(errno))};
  }
  const int flags = ::fcntl(channel->fd, F_GETFL);
  if (flags < 0 || ::fcntl(channel->fd, F_SETFL, static_cast<unsigned>(flags) | O_NONBLOCK) != 0)
    return cm_error("fcntl of an event channel", errno);
  return channel;
}

Result<UniqueCmId> make_id(rdma_event_channel* channel) {
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(channel, &id, nullptr, RDMA_PS_TCP) != 0)
    return cm_error("rdma_create_id", errno);
  return UniqueCmId(id);
}

/// A numeric address; "fe80::1%eth0" has its zone.
Result<UniqueAddress> parse_address(const std::string& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
      error != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("'{}' is not an IP address: {}", host, gai_strerror(error))};
  }
  return UniqueAddress(list);
}

/// The next event's copy, acknowledged; nothing when there is none.
struct CmEvent {
  rdma_cm_event_type type = RDMA_CM_EVENT_ADDR_ERROR;
  int status = 0;
  rdma_cm_id* id = nullptr;  // Of a request: the new one.
  std::optional<CmToken> token{};
};

Result<std::optional<CmEvent>> next_event(rdma_event_channel* channel) {
  rdma_cm_event* event = nullptr;
  if (rdma_get_cm_event(channel, &event) != 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return std::optional<CmEvent>();
    return cm_error("rdma_get_cm_event", errno);
  }
  CmEvent out{.type = event->event, .status = event->status, .id = event->id};
  if (event->event == RDMA_CM_EVENT_CONNECT_REQUEST) {
    // The length is the transport's: InfiniBand's is padded to 56 bytes.
    const rdma_conn_param& said = event->param.conn;
    if (said.private_data != nullptr && said.private_data_len >= sizeof(CmToken)) {
      out.token.emplace();
      std::memcpy(out.token->data(), said.private_data, sizeof(CmToken));
    }
  }
  rdma_ack_cm_event(event);
  return std::optional<CmEvent>(out);
}

bool is_iwarp(const rdma_cm_id& id) {
  return id.verbs != nullptr && id.verbs->device->transport_type == IBV_TRANSPORT_IWARP;
}

/// What rdma_cm learnt about the path, with our own timers: its own would let a lost peer go
/// unnoticed for half a minute, and make a receiver that is late by nothing wait 655 ms.
Result<void> move_to(rdma_cm_id* id, IbvQueuePair& queue_pair, ibv_qp_state state,
                     const CmParameters& parameters) {
  ibv_qp_attr attributes{};
  attributes.qp_state = state;
  int mask = 0;
  if (rdma_init_qp_attr(id, &attributes, &mask) != 0) return cm_error("rdma_init_qp_attr", errno);
  if (state == IBV_QPS_RTR) {
    attributes.min_rnr_timer = parameters.min_rnr_timer;
    attributes.max_dest_rd_atomic = 1;
    if (parameters.mtu_bytes != 0)
      attributes.path_mtu = static_cast<ibv_mtu>(std::countr_zero(parameters.mtu_bytes) - 7);
  } else {
    attributes.timeout = parameters.timeout;
    attributes.retry_cnt = parameters.retry_count;
    attributes.rnr_retry = parameters.rnr_retry;
    attributes.max_rd_atomic = 1;
  }
  if (const int error = ibv_modify_qp(queue_pair.raw(), &attributes, mask); error != 0) {
    return device_error(queue_pair.context().info.name,
                        state == IBV_QPS_RTR ? "ibv_modify_qp to RTR" : "ibv_modify_qp to RTS",
                        error);
  }
  return ok();
}

class RealCmConnection : public CmConnection {
 public:
  RealCmConnection(UniqueCmChannel channel, UniqueCmId id, CmState state, std::string peer,
                   int resolve_timeout_ms)
      : channel_(std::move(channel)),
        id_(std::move(id)),
        wait_(channel_->fd),
        peer_(std::move(peer)),
        resolve_timeout_ms_(resolve_timeout_ms),
        state_(state) {
    if (state_ == CmState::kRequested) learn_device();
  }
  ~RealCmConnection() override {
    // Tells the peer at once; a failure means that there is nobody left to tell.
    if (state_ == CmState::kConnected || was_connected_) (void)rdma_disconnect(id_.get());
  }

  CmState poll() override {
    while (state_ != CmState::kEnded) {
      Result<std::optional<CmEvent>> event = next_event(channel_.get());
      if (!event.ok()) {
        end(std::move(event).error());
      } else if (!*event) {
        break;
      } else {
        take(**event);
      }
    }
    return state_;
  }

  [[nodiscard]] const std::optional<Error>& failure() const override { return failure_; }
  [[nodiscard]] const std::string& device() const override { return device_; }
  [[nodiscard]] std::uint8_t device_port() const override { return device_port_; }

  Result<void> connect(QueuePair& queue_pair, const CmToken& token,
                       const CmParameters& parameters) override {
    RECUA_RETURN_IF_ERROR(prepare(queue_pair, parameters, CmState::kResolved));
    rdma_conn_param said = connection_parameters();
    said.private_data = token.data();
    said.private_data_len = sizeof token;
    if (rdma_connect(id_.get(), &said) != 0) return cm_error("rdma_connect", errno);
    state_ = CmState::kConnecting;
    return ok();
  }

  Result<void> accept(QueuePair& queue_pair, const CmParameters& parameters) override {
    RECUA_RETURN_IF_ERROR(prepare(queue_pair, parameters, CmState::kRequested));
    RECUA_RETURN_IF_ERROR(make_ready());
    rdma_conn_param said = connection_parameters();
    if (rdma_accept(id_.get(), &said) != 0) return cm_error("rdma_accept", errno);
    state_ = CmState::kConnecting;
    return ok();
  }

  void arm(const asio::any_io_executor& executor, ReadyCallback ready) override {
    wait_.arm(executor, std::move(ready));
  }

 private:
  Result<void> prepare(QueuePair& queue_pair, const CmParameters& parameters, CmState needed) {
    if (state_ != needed) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("rdma_cm: the connection with {} is not waiting for this", peer_)};
    }
    auto* const real = dynamic_cast<IbvQueuePair*>(&queue_pair);
    if (real == nullptr || real->context().info.name != device_) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("rdma_cm: the connection with {} needs a queue pair of {}", peer_, device_)};
    }
    const std::uint32_t mtu = parameters.mtu_bytes;
    if (mtu != 0 && (mtu < 256 || mtu > 4096 || !std::has_single_bit(mtu))) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("rdma_cm: MTU {} is not possible, only 256, 512, 1024, 2048 or 4096", mtu)};
    }
    if (parameters.retry_count > kRetryCountMax || parameters.rnr_retry > kRetryCountMax) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("rdma_cm: retry counts {} and {} are not possible, only 0 to 6",
                               parameters.retry_count, parameters.rnr_retry)};
    }
    queue_pair_ = real;
    parameters_ = parameters;
    return ok();
  }

  [[nodiscard]] rdma_conn_param connection_parameters() const {
    rdma_conn_param said{};
    said.responder_resources = 1;
    said.initiator_depth = 1;
    said.retry_count = parameters_.retry_count;
    said.rnr_retry_count = parameters_.rnr_retry;
    said.qp_num = queue_pair_->number();
    return said;
  }

  /// On iWARP the kernel moves the queue pair itself, together with the TCP connection below it.
  Result<void> make_ready() {
    if (is_iwarp(*id_)) return ok();
    RECUA_RETURN_IF_ERROR(move_to(id_.get(), *queue_pair_, IBV_QPS_RTR, parameters_));
    return move_to(id_.get(), *queue_pair_, IBV_QPS_RTS, parameters_);
  }

  void learn_device() {
    if (id_->verbs == nullptr) return;
    device_ = ibv_get_device_name(id_->verbs->device);
    device_port_ = id_->port_num;
  }

  void end(Error error) {
    failure_ = std::move(error);
    state_ = CmState::kEnded;
    queue_pair_ = nullptr;
  }
  void end(ErrorCode code, std::string_view what) {
    end(Error{code, fmt::format("rdma_cm: the connection with {} {}", peer_, what)});
  }

  void take(const CmEvent& event) {
    switch (event.type) {
      case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (rdma_resolve_route(id_.get(), resolve_timeout_ms_) != 0)
          end(cm_error("rdma_resolve_route", errno));
        return;
      case RDMA_CM_EVENT_ROUTE_RESOLVED:
        learn_device();
        state_ = CmState::kResolved;
        return;
      case RDMA_CM_EVENT_CONNECT_RESPONSE: {
        Result<void> made = make_ready();
        if (made.ok() && rdma_establish(id_.get()) != 0) made = cm_error("rdma_establish", errno);
        if (!made.ok()) return end(std::move(made).error());
        return established();
      }
      case RDMA_CM_EVENT_ESTABLISHED:
        return established();
      case RDMA_CM_EVENT_ADDR_ERROR:
        return end(ErrorCode::kUnavailable,
                   fmt::format("failed: its address does not resolve ({})", event.status));
      case RDMA_CM_EVENT_ROUTE_ERROR:
        return end(ErrorCode::kUnavailable, fmt::format("failed: no route ({})", event.status));
      case RDMA_CM_EVENT_REJECTED:
        // 8 is InfiniBand's "invalid service id", ECONNREFUSED iWARP's word for it.
        return end(ErrorCode::kUnavailable, event.status == 8 || event.status == -ECONNREFUSED
                                                ? std::string("failed: nobody listens there")
                                                : fmt::format("was rejected ({})", event.status));
      case RDMA_CM_EVENT_CONNECT_ERROR:
      case RDMA_CM_EVENT_UNREACHABLE:
        return end(ErrorCode::kUnavailable, fmt::format("failed: no answer ({})", event.status));
      case RDMA_CM_EVENT_DISCONNECTED:
        return end(ErrorCode::kUnavailable, "ended: the peer disconnected");
      case RDMA_CM_EVENT_DEVICE_REMOVAL:
        return end(ErrorCode::kUnavailable, fmt::format("ended: {} was removed", device_));
      case RDMA_CM_EVENT_ADDR_CHANGE:
        return end(ErrorCode::kUnavailable,
                   fmt::format("ended: the address of {} moved to other hardware", device_));
      default:
        return;  // Multicast, which we have none of, and the end of the time that follows an end.
    }
  }

  void established() {
    state_ = CmState::kConnected;
    was_connected_ = true;
    queue_pair_ = nullptr;
  }

  UniqueCmChannel channel_;
  UniqueCmId id_;
  FdWait wait_;
  std::string peer_;
  int resolve_timeout_ms_;
  CmState state_;
  std::optional<Error> failure_;
  std::string device_;
  std::uint8_t device_port_ = 0;
  CmParameters parameters_;
  IbvQueuePair* queue_pair_ = nullptr;  // Borrowed while connecting.
  bool was_connected_ = false;
};

std::string peer_of(rdma_cm_id* id) {
  std::array<char, NI_MAXHOST> host{};
  sockaddr* const address = rdma_get_peer_addr(id);
  const auto length = static_cast<socklen_t>(address->sa_family == AF_INET6 ? sizeof(sockaddr_in6)
                                                                            : sizeof(sockaddr_in));
  if (getnameinfo(address, length, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0)
    return "an unknown peer";
  return Endpoint{.host = host.data(), .port = ntohs(rdma_get_dst_port(id))}.to_string();
}

class RealCmListener : public CmListener {
 public:
  RealCmListener(UniqueCmChannel channel, UniqueCmId id, const std::string& address)
      : channel_(std::move(channel)),
        id_(std::move(id)),
        wait_(channel_->fd),
        endpoint_{.host = address, .port = ntohs(rdma_get_src_port(id_.get()))},
        device_(ibv_get_device_name(id_->verbs->device)) {}

  [[nodiscard]] const Endpoint& endpoint() const override { return endpoint_; }
  [[nodiscard]] const std::string& device() const override { return device_; }
  [[nodiscard]] std::uint8_t device_port() const override { return id_->port_num; }

  Result<std::optional<CmRequest>> poll() override {
    while (true) {
      RECUA_ASSIGN_OR_RETURN(std::optional<CmEvent> event, next_event(channel_.get()));
      if (!event) return std::optional<CmRequest>();
      if (event->type == RDMA_CM_EVENT_DEVICE_REMOVAL) {
        return Error{ErrorCode::kUnavailable, fmt::format("{} was removed", device_)};
      }
      if (event->type != RDMA_CM_EVENT_CONNECT_REQUEST) continue;
      UniqueCmId id(event->id);  // Destroying it unaccepted rejects the request.
      const std::string peer = peer_of(id.get());
      if (!event->token) {
        log_warning("rdma: a connection request of {} has no token; rejected", peer);
        continue;
      }
      RECUA_ASSIGN_OR_RETURN(UniqueCmChannel channel, make_channel());
      if (rdma_migrate_id(id.get(), channel.get()) != 0) return cm_error("rdma_migrate_id", errno);
      return std::optional<CmRequest>(
          CmRequest{.token = *event->token,
                    .connection = std::make_unique<RealCmConnection>(
                        std::move(channel), std::move(id), CmState::kRequested, peer, 0)});
    }
  }

  void arm(const asio::any_io_executor& executor, ReadyCallback ready) override {
    wait_.arm(executor, std::move(ready));
  }

 private:
  UniqueCmChannel channel_;
  UniqueCmId id_;
  FdWait wait_;
  Endpoint endpoint_;
  std::string device_;
};

Error no_device_at(const std::string& address) {
  return Error{ErrorCode::kNotFound,
               fmt::format("rdma_cm: no RDMA device has the address {}", address)};
}

}  // namespace

Result<std::unique_ptr<CmListener>> cm_listen(const std::string& local_address) {
  RECUA_ASSIGN_OR_RETURN(const UniqueAddress address, parse_address(local_address, 0));
  RECUA_ASSIGN_OR_RETURN(UniqueCmChannel channel, make_channel());
  RECUA_ASSIGN_OR_RETURN(UniqueCmId id, make_id(channel.get()));
  if (rdma_bind_addr(id.get(), address->ai_addr) != 0) {
    if (errno == ENODEV || errno == EADDRNOTAVAIL) return no_device_at(local_address);
    return cm_error("rdma_bind_addr", errno);
  }
  // Not bound to a device: a wildcard, or an address of an ordinary interface.
  if (id->verbs == nullptr) return no_device_at(local_address);
  if (rdma_listen(id.get(), kBacklog) != 0) return cm_error("rdma_listen", errno);
  return std::make_unique<RealCmListener>(std::move(channel), std::move(id), local_address);
}

Result<std::unique_ptr<CmConnection>> cm_connect(const std::string& local_address,
                                                 const Endpoint& remote, Duration resolve_timeout) {
  RECUA_ASSIGN_OR_RETURN(const UniqueAddress from, parse_address(local_address, 0));
  RECUA_ASSIGN_OR_RETURN(const UniqueAddress to, parse_address(remote.host, remote.port));
  RECUA_ASSIGN_OR_RETURN(UniqueCmChannel channel, make_channel());
  RECUA_ASSIGN_OR_RETURN(UniqueCmId id, make_id(channel.get()));
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(resolve_timeout).count();
  const int timeout_ms = static_cast<int>(std::clamp<std::int64_t>(ms, 1, 60'000));
  if (rdma_resolve_addr(id.get(), from->ai_addr, to->ai_addr, timeout_ms) != 0) {
    if (errno == ENODEV || errno == EADDRNOTAVAIL) return no_device_at(local_address);
    return cm_error("rdma_resolve_addr", errno);
  }
  return std::make_unique<RealCmConnection>(std::move(channel), std::move(id), CmState::kResolving,
                                            remote.to_string(), timeout_ms);
}

}  // namespace recua::net::verbs
