#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <fcntl.h>
#include <utility>

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

constexpr std::size_t kBatch = 16;  // Completions taken at once; 768 bytes on the stack.

/// Read only where the status says that it is valid.
CompletionKind to_kind(ibv_wc_opcode opcode) {
  if (opcode == IBV_WC_RECV_RDMA_WITH_IMM) return CompletionKind::kReceiveImmediate;
  if (opcode == IBV_WC_RECV) return CompletionKind::kReceive;
  return CompletionKind::kSend;
}

Completion to_completion(const ibv_wc& wc) {
  Completion out{.wr_id = wc.wr_id, .status = to_status(wc.status), .vendor_error = wc.vendor_err};
  if (out.status == Status::kSuccess) {
    out.kind = to_kind(wc.opcode);
    out.bytes = wc.byte_len;
    if ((wc.wc_flags & IBV_WC_WITH_IMM) != 0) out.immediate = ntohl(wc.imm_data);
  } else if (out.status == Status::kOther) {
    out.vendor_error = static_cast<std::uint32_t>(wc.status);
  }
  return out;
}

}  // namespace

Status to_status(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return Status::kSuccess;
    case IBV_WC_LOC_LEN_ERR:
      return Status::kLocalLength;
    case IBV_WC_LOC_QP_OP_ERR:
      return Status::kLocalQpOperation;
    case IBV_WC_LOC_PROT_ERR:
      return Status::kLocalProtection;
    case IBV_WC_WR_FLUSH_ERR:
      return Status::kFlushed;
    case IBV_WC_MW_BIND_ERR:
      return Status::kMemoryWindowBind;
    case IBV_WC_BAD_RESP_ERR:
      return Status::kBadResponse;
    case IBV_WC_LOC_ACCESS_ERR:
      return Status::kLocalAccess;
    case IBV_WC_REM_INV_REQ_ERR:
      return Status::kRemoteInvalidRequest;
    case IBV_WC_REM_ACCESS_ERR:
      return Status::kRemoteAccess;
    case IBV_WC_REM_OP_ERR:
      return Status::kRemoteOperation;
    case IBV_WC_RETRY_EXC_ERR:
      return Status::kRetryExceeded;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return Status::kRnrRetryExceeded;
    case IBV_WC_REM_ABORT_ERR:
      return Status::kRemoteAbort;
    case IBV_WC_FATAL_ERR:
      return Status::kFatal;
    // Of services that we do not use (reliable datagrams, tag matching), or without a cause.
    case IBV_WC_LOC_EEC_OP_ERR:
    case IBV_WC_LOC_RDD_VIOL_ERR:
    case IBV_WC_REM_INV_RD_REQ_ERR:
    case IBV_WC_INV_EECN_ERR:
    case IBV_WC_INV_EEC_STATE_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_GENERAL_ERR:
    case IBV_WC_TM_ERR:
    case IBV_WC_TM_RNDV_INCOMPLETE:
      return Status::kOther;
  }
  return Status::kOther;  // Of a libibverbs newer than this build.
}

IbvCompletionQueue::IbvCompletionQueue(const IbvContext& context, UniqueChannel channel,
                                       UniqueCq cq)
    : context_(context),
      channel_(std::move(channel)),
      cq_(std::move(cq)),
      wait_(channel_->fd),
      handle_(channel_->fd) {}

Result<std::unique_ptr<CompletionQueue>> IbvCompletionQueue::create(const IbvContext& context,
                                                                    std::size_t depth) {
  const std::string& name = context.info.name;
  if (depth < 1 || depth > context.completions_max) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: a completion queue of {} is not possible, only 1 to {}", name,
                             depth, context.completions_max)};
  }
  UniqueChannel channel(ibv_create_comp_channel(context.context.get()));
  if (!channel) return device_error(name, "ibv_create_comp_channel", errno);
  const int flags = ::fcntl(channel->fd, F_GETFL);
  if (flags < 0 || ::fcntl(channel->fd, F_SETFL, static_cast<unsigned>(flags) | O_NONBLOCK) != 0)
    return device_error(name, "fcntl of a completion channel", errno);
  UniqueCq cq(ibv_create_cq(context.context.get(), static_cast<int>(depth), nullptr, channel.get(),
                            /*comp_vector=*/0));
  if (!cq) return device_error(name, "ibv_create_cq", errno);
  return std::unique_ptr<CompletionQueue>(
      new IbvCompletionQueue(context, std::move(channel), std::move(cq)));
}

Result<std::size_t> IbvCompletionQueue::poll(std::span<Completion> out) {
  std::size_t n_taken = 0;
  while (n_taken < out.size()) {
    std::array<ibv_wc, kBatch> batch;  // Filled by the device as far as we read it.
    const std::size_t n_wanted = std::min(out.size() - n_taken, batch.size());
    const int n = ibv_poll_cq(cq_.get(), static_cast<int>(n_wanted), batch.data());
    if (n < 0) {
      // Those already taken are delivered first; the queue fails again at the next call.
      if (n_taken > 0) break;
      return Error{ErrorCode::kIo, fmt::format("{}: ibv_poll_cq failed", context_.info.name)};
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
      out[n_taken++] = to_completion(batch[i]);
    if (static_cast<std::size_t>(n) < n_wanted) break;
  }
  return n_taken;
}

void IbvCompletionQueue::arm(const asio::any_io_executor& executor, ReadyCallback ready) {
  if (const int error = ask_for_event(); error != 0) {
    // A removed device. Sleeping would be for ever; whoever wakes up finds out by polling.
    log_debug("rdma: {}: ibv_req_notify_cq failed: {}", context_.info.name, std::strerror(error));
    asio::post(executor, std::move(ready));
    return;
  }
  ready_ = std::move(ready);
  wait_.arm(executor, [this] {
    take_event();
    // The last thing done here: the callback may destroy this queue.
    if (const ReadyCallback call = std::exchange(ready_, {})) call();
  });
}

bool IbvCompletionQueue::arm_in(const WaitSet& set, bool is_awaited) {
  if (handle_.take()) take_event();
  if (!is_awaited) return true;
  return ask_for_event() == 0 && handle_.join(set);
}

void IbvCompletionQueue::give_up_waits() {
  handle_.leave();
  wait_.give_up();
  ready_ = {};
}

int IbvCompletionQueue::ask_for_event() {
  // While an event is on its way or unread, another one would only cost a second wake-up.
  if (event_is_due_) return 0;
  const int error = ibv_req_notify_cq(cq_.get(), /*solicited_only=*/0);
  event_is_due_ = error == 0;
  return error;
}

void IbvCompletionQueue::take_event() {
  ibv_cq* cq = nullptr;
  void* ignored = nullptr;
  if (ibv_get_cq_event(channel_.get(), &cq, &ignored) != 0) return;
  event_is_due_ = false;
  // Destroying the queue would wait for ever for events that were taken and not acknowledged.
  ibv_ack_cq_events(cq_.get(), 1);
}

}  // namespace recua::net::verbs
