#pragma once
/// What the files of the real provider share: owners of libibverbs' objects, the opened context,
/// and how their errors read. Only files named ibv_* and cm.cc include this.

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <infiniband/verbs.h>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "net/verbs/fd_wait.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

/// Destroys a libibverbs object. Failing means that one of its children is still alive, or that the
/// device was removed: both are worth a line, neither can be helped here.
template <auto kDestroy>
struct VerbsDeleter {
  template <class T>
  void operator()(T* object) const noexcept {
    if (const int error = kDestroy(object); error != 0)
      log_warning("rdma: tearing down failed: {}", std::strerror(error > 0 ? error : errno));
  }
};

using UniqueContext = std::unique_ptr<ibv_context, VerbsDeleter<ibv_close_device>>;
using UniquePd = std::unique_ptr<ibv_pd, VerbsDeleter<ibv_dealloc_pd>>;
using UniqueMr = std::unique_ptr<ibv_mr, VerbsDeleter<ibv_dereg_mr>>;
using UniqueChannel = std::unique_ptr<ibv_comp_channel, VerbsDeleter<ibv_destroy_comp_channel>>;
using UniqueCq = std::unique_ptr<ibv_cq, VerbsDeleter<ibv_destroy_cq>>;
using UniqueQp = std::unique_ptr<ibv_qp, VerbsDeleter<ibv_destroy_qp>>;

/// An opened device, borrowed by everything that is made from it.
struct IbvContext {
  UniqueContext context;
  DeviceInfo info;
  std::uint32_t completions_max = 0;  // max_cqe
};

/// "rxa: ibv_alloc_pd failed: Cannot allocate memory". kResourceExhausted for EBUSY, EAGAIN and
/// ENOMEM, else kIo.
Error device_error(std::string_view device, std::string_view call, int system_error);
/// Memory that cannot be locked: how much, the limit, and what to do about it.
Error locked_memory_error(std::string_view device, std::uint64_t bytes);

/// What there is on an opened device. (ibv_discovery.cc)
Result<DeviceInfo> describe_device(ibv_context* context, std::uint32_t* completions_max);
Result<PortInfo> describe_port(ibv_context* context, std::uint8_t number);

Status to_status(ibv_wc_status status);

class IbvCompletionQueue : public CompletionQueue {
 public:
  static Result<std::unique_ptr<CompletionQueue>> create(const IbvContext& context,
                                                         std::size_t depth);

  Result<std::size_t> poll(std::span<Completion> out) override;
  void arm(const asio::any_io_executor& executor, ReadyCallback ready) override;
  bool arm_in(const WaitSet& set, bool is_awaited) override;
  void leave_set() override { handle_.leave(); }
  void give_up_waits() override;

  [[nodiscard]] ibv_cq* raw() const { return cq_.get(); }

 private:
  IbvCompletionQueue(const IbvContext& context, UniqueChannel channel, UniqueCq cq);
  /// 0, or what the device answered. An event that was asked for and not read is enough.
  int ask_for_event();
  void take_event();

  const IbvContext& context_;
  UniqueChannel channel_;
  UniqueCq cq_;
  ReadyCallback ready_;
  bool event_is_due_ = false;  // Asked for and not read yet: there is never more than one.
  FdWait wait_;                // Of the channel's descriptor, so it goes first;
  WaitHandle handle_;          // and so does this.
};

class IbvQueuePair : public QueuePair {
 public:
  static Result<std::unique_ptr<QueuePair>> create(const IbvContext& context, ibv_pd* domain,
                                                   CompletionQueue& completions,
                                                   const QueuePairOptions& options);

  [[nodiscard]] std::uint32_t number() const override { return qp_->qp_num; }
  [[nodiscard]] std::uint32_t inline_bytes_max() const override { return inline_bytes_max_; }
  Result<void> connect(const ConnectParameters& parameters) override;
  Result<void> post_send(std::span<const SendRequest> requests) override;
  Result<void> post_receive(std::span<const ReceiveRequest> requests) override;
  Result<void> set_error() override;

  [[nodiscard]] ibv_qp* raw() const { return qp_.get(); }
  [[nodiscard]] const IbvContext& context() const { return context_; }

 private:
  IbvQueuePair(const IbvContext& context, UniqueQp qp, const QueuePairOptions& options,
               std::uint32_t inline_bytes_max);

  const IbvContext& context_;
  UniqueQp qp_;
  std::uint32_t segments_max_;
  std::uint32_t inline_bytes_max_;
  bool in_error_ = false;
  std::vector<ibv_send_wr> chain_;  // What posts are built in, large enough for a whole queue.
  std::vector<ibv_sge> segments_;
};

/// Takes an opened context over. (ibv_device.cc)
std::unique_ptr<Device> make_ibv_device(IbvContext context);

}  // namespace recua::net::verbs
