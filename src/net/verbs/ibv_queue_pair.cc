#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <bit>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

constexpr std::size_t kReceiveBatch = 32;      // Receives handed over at once, built on the stack.
constexpr std::uint32_t kInlineBytesMin = 16;  // Smaller wishes are not worth another attempt.
constexpr std::uint32_t kQpNumberMax = 0xff'ffff;
constexpr std::uint32_t kPsnMax = 0xff'ffff;
constexpr std::uint8_t kRetryCountMax = 6;  // 7 means for ever in rxe, and rnr_retry 7 everywhere.

std::optional<ibv_mtu> to_mtu(std::uint32_t bytes) {
  if (bytes < 256 || bytes > 4096 || !std::has_single_bit(bytes)) return std::nullopt;
  return static_cast<ibv_mtu>(std::countr_zero(bytes) - 7);
}

ibv_ah_attr to_ah(const AddressVector& address) {
  ibv_ah_attr out{};
  out.port_num = address.port;
  out.dlid = address.lid;
  out.sl = address.service_level;
  if (address.is_global) {
    out.is_global = 1;
    std::memcpy(out.grh.dgid.raw, address.gid.data(), address.gid.size());
    out.grh.sgid_index = address.gid_index;
    out.grh.hop_limit = address.hop_limit;
    out.grh.traffic_class = address.traffic_class;
  }
  return out;
}

ibv_wr_opcode to_opcode(Operation operation) {
  switch (operation) {
    case Operation::kWrite:
      return IBV_WR_RDMA_WRITE;
    case Operation::kWriteImmediate:
      return IBV_WR_RDMA_WRITE_WITH_IMM;
    case Operation::kSend:
      return IBV_WR_SEND;
  }
  return IBV_WR_SEND;
}

ibv_sge to_sge(const Segment& segment) {
  return ibv_sge{.addr = std::bit_cast<std::uintptr_t>(segment.data),
                 .length = segment.bytes,
                 .lkey = segment.lkey};
}

/// The largest inline size not above the wish that the device accepts. There is no way to ask:
/// it depends on the segments too, and devices fail the creation with one errno or another.
UniqueQp create_with_inline(ibv_pd* domain, const ibv_qp_init_attr& wished,
                            std::uint32_t* inline_bytes) {
  std::uint32_t wish = wished.cap.max_inline_data;
  while (true) {
    ibv_qp_init_attr attributes = wished;
    attributes.cap.max_inline_data = wish;
    UniqueQp qp(ibv_create_qp(domain, &attributes));
    if (qp || wish == 0) {
      // Devices round up, even 0; more than was asked for is no use to anybody.
      *inline_bytes = std::min(attributes.cap.max_inline_data, wish);
      return qp;
    }
    wish = wish / 2 < kInlineBytesMin ? 0 : wish / 2;
  }
}

Result<void> check(const IbvContext& context, const QueuePairOptions& options) {
  const DeviceInfo& info = context.info;
  const auto bad = [&](std::string_view what, std::uint64_t value, std::uint64_t max) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("{}: {} {} is not possible, only 1 to {}",
                                                          info.name, what, value, max)};
  };
  if (options.port < 1 || options.port > info.ports.size())
    return bad("port", options.port, info.ports.size());
  if (options.send_depth < 1 || options.send_depth > info.send_depth_max)
    return bad("a send depth of", options.send_depth, info.send_depth_max);
  if (options.receive_depth < 1 || options.receive_depth > info.send_depth_max)
    return bad("a receive depth of", options.receive_depth, info.send_depth_max);
  if (options.segments_max < 1 || options.segments_max > info.sge_max)
    return bad("a request of segments", options.segments_max, info.sge_max);
  return ok();
}

Result<void> check(const ConnectParameters& p, std::string_view device) {
  const auto bad = [&](std::string_view what, std::uint64_t value, std::string_view right) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: {} {} is not possible, only {}", device, what, value, right)};
  };
  if (!to_mtu(p.mtu_bytes)) return bad("MTU", p.mtu_bytes, "256, 512, 1024, 2048 or 4096");
  if (p.remote_qp_number > kQpNumberMax)
    return bad("queue pair number", p.remote_qp_number, "24 bits");
  if (p.remote_psn > kPsnMax) return bad("the peer's packet number", p.remote_psn, "24 bits");
  if (p.local_psn > kPsnMax) return bad("packet number", p.local_psn, "24 bits");
  if (p.retry_count > kRetryCountMax) return bad("retry count", p.retry_count, "0 to 6");
  if (p.rnr_retry > kRetryCountMax) return bad("receiver-not-ready retry", p.rnr_retry, "0 to 6");
  if (p.timeout < 1 || p.timeout > 31) return bad("timeout exponent", p.timeout, "1 to 31");
  return ok();
}

}  // namespace

IbvQueuePair::IbvQueuePair(const IbvContext& context, UniqueQp qp, const QueuePairOptions& options,
                           std::uint32_t inline_bytes_max)
    : context_(context),
      qp_(std::move(qp)),
      segments_max_(options.segments_max),
      inline_bytes_max_(inline_bytes_max),
      chain_(options.send_depth),
      segments_(std::size_t{options.send_depth} * options.segments_max) {}

Result<std::unique_ptr<QueuePair>> IbvQueuePair::create(const IbvContext& context, ibv_pd* domain,
                                                        CompletionQueue& completions,
                                                        const QueuePairOptions& options) {
  RECUA_RETURN_IF_ERROR(check(context, options));
  const std::string& name = context.info.name;
  ibv_cq* const cq = static_cast<IbvCompletionQueue&>(completions).raw();
  ibv_qp_init_attr attributes{};
  attributes.send_cq = cq;
  attributes.recv_cq = cq;
  attributes.qp_type = IBV_QPT_RC;
  attributes.sq_sig_all = 0;
  attributes.cap.max_send_wr = options.send_depth;
  attributes.cap.max_recv_wr = options.receive_depth;
  attributes.cap.max_send_sge = options.segments_max;
  attributes.cap.max_recv_sge = 1;
  attributes.cap.max_inline_data = options.inline_bytes;
  std::uint32_t inline_bytes = 0;
  UniqueQp qp = create_with_inline(domain, attributes, &inline_bytes);
  if (!qp) {
    Error error = device_error(name, "ibv_create_qp", errno);
    // Its queues are locked memory too.
    if (errno == ENOMEM) error.message += "; if `ulimit -l` is small, raise it";
    return error;
  }

  ibv_qp_attr init{};
  init.qp_state = IBV_QPS_INIT;
  init.port_num = options.port;
  if (options.remote_write) init.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
  int mask = IBV_QP_STATE | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
  // iWARP has no partitions; everything else starts in the default one.
  if (context.info.transport != Transport::kIwarp) mask |= IBV_QP_PKEY_INDEX;
  if (const int error = ibv_modify_qp(qp.get(), &init, mask); error != 0)
    return device_error(name, "ibv_modify_qp to INIT", error);
  return std::unique_ptr<QueuePair>(
      new IbvQueuePair(context, std::move(qp), options, inline_bytes));
}

Result<void> IbvQueuePair::connect(const ConnectParameters& p) {
  const std::string& name = context_.info.name;
  RECUA_RETURN_IF_ERROR(check(p, name));
  ibv_qp_attr rtr{};
  rtr.qp_state = IBV_QPS_RTR;
  rtr.ah_attr = to_ah(p.address);
  rtr.path_mtu = *to_mtu(p.mtu_bytes);
  rtr.dest_qp_num = p.remote_qp_number;
  rtr.rq_psn = p.remote_psn;
  rtr.max_dest_rd_atomic = 1;  // We never read; some drivers dislike 0.
  rtr.min_rnr_timer = p.min_rnr_timer;
  int error = ibv_modify_qp(qp_.get(), &rtr,
                            IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
  if (error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH) {
    // Drivers look up the peer's hardware address here (ARP, neighbour discovery).
    return Error{ErrorCode::kUnavailable,
                 fmt::format("{}: there is no way to the peer's address from gid index {}: {}",
                             name, p.address.gid_index, std::strerror(error))};
  }
  if (error != 0) {
    Error out = device_error(name, "ibv_modify_qp to RTR", error);
    out.message += fmt::format(" (gid index {}, mtu {}, queue pair {})", p.address.gid_index,
                               p.mtu_bytes, p.remote_qp_number);
    return out;
  }

  ibv_qp_attr rts{};
  rts.qp_state = IBV_QPS_RTS;
  rts.timeout = p.timeout;
  rts.retry_cnt = p.retry_count;
  rts.rnr_retry = p.rnr_retry;
  rts.sq_psn = p.local_psn;
  rts.max_rd_atomic = 1;
  error = ibv_modify_qp(qp_.get(), &rts,
                        IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                            IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
  if (error != 0) return device_error(name, "ibv_modify_qp to RTS", error);
  return ok();
}

Result<void> IbvQueuePair::post_send(std::span<const SendRequest> requests) {
  if (requests.empty()) return ok();
  const std::string& name = context_.info.name;
  if (requests.size() > chain_.size()) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("{}: {} requests in one post, at most {}",
                                                          name, requests.size(), chain_.size())};
  }
  ibv_sge* next_segment = segments_.data();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const SendRequest& request = requests[i];
    if (request.segments.size() > segments_max_) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{}: {} segments in one request, at most {}", name,
                               request.segments.size(), segments_max_)};
    }
    ibv_send_wr& wr = chain_[i] = ibv_send_wr{};
    wr.wr_id = request.wr_id;
    wr.next = i + 1 < requests.size() ? &chain_[i + 1] : nullptr;
    wr.sg_list = next_segment;
    wr.num_sge = static_cast<int>(request.segments.size());
    wr.opcode = to_opcode(request.operation);
    if (request.signaled) wr.send_flags |= IBV_SEND_SIGNALED;
    if (request.inline_data) wr.send_flags |= IBV_SEND_INLINE;
    if (request.operation != Operation::kSend) {
      wr.wr.rdma.remote_addr = request.remote_address;
      wr.wr.rdma.rkey = request.rkey;
    }
    if (request.operation == Operation::kWriteImmediate) wr.imm_data = htonl(request.immediate);
    std::uint64_t bytes = 0;
    for (const Segment& segment : request.segments) {
      *next_segment++ = to_sge(segment);
      bytes += segment.bytes;
    }
    if (request.inline_data && bytes > inline_bytes_max_) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{}: {} bytes inline, at most {}", name, bytes, inline_bytes_max_)};
    }
  }
  ibv_send_wr* bad = nullptr;
  const int error = ibv_post_send(qp_.get(), chain_.data(), &bad);
  if (error == 0) return ok();
  if (error == ENOMEM && bad == chain_.data()) {
    return Error{ErrorCode::kResourceExhausted, fmt::format("{}: the send queue is full", name)};
  }
  // What stands before the bad one has been posted, so the caller cannot simply try again.
  if (error == ENOMEM) {
    return Error{ErrorCode::kIo, fmt::format("{}: the send queue became full within a post", name)};
  }
  return device_error(name, "ibv_post_send", error);
}

Result<void> IbvQueuePair::post_receive(std::span<const ReceiveRequest> requests) {
  while (!requests.empty()) {
    const std::size_t n = std::min(requests.size(), kReceiveBatch);
    std::array<ibv_recv_wr, kReceiveBatch> chain;
    std::array<ibv_sge, kReceiveBatch> segments;
    for (std::size_t i = 0; i < n; ++i) {
      const bool has_segment = requests[i].segment.bytes != 0;
      if (has_segment) segments[i] = to_sge(requests[i].segment);
      chain[i] = ibv_recv_wr{.wr_id = requests[i].wr_id,
                             .next = i + 1 < n ? &chain[i + 1] : nullptr,
                             .sg_list = has_segment ? &segments[i] : nullptr,
                             .num_sge = has_segment ? 1 : 0};
    }
    ibv_recv_wr* bad = nullptr;
    const int error = ibv_post_recv(qp_.get(), chain.data(), &bad);
    if (error == ENOMEM) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{}: the receive queue is full", context_.info.name)};
    }
    if (error != 0) return device_error(context_.info.name, "ibv_post_recv", error);
    requests = requests.subspan(n);
  }
  return ok();
}

Result<void> IbvQueuePair::set_error() {
  if (in_error_) return ok();
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  if (const int error = ibv_modify_qp(qp_.get(), &attributes, IBV_QP_STATE); error != 0)
    return device_error(context_.info.name, "ibv_modify_qp to ERR", error);
  in_error_ = true;
  return ok();
}

}  // namespace recua::net::verbs
