#include <array>
#include <fcntl.h>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

class IbvRegion : public Region {
 public:
  IbvRegion(UniqueMr mr, std::span<std::byte> memory) : mr_(std::move(mr)), memory_(memory) {}

  [[nodiscard]] std::span<std::byte> memory() const override { return memory_; }
  [[nodiscard]] std::uint32_t lkey() const override { return mr_->lkey; }
  [[nodiscard]] std::uint32_t rkey() const override { return mr_->rkey; }

 private:
  UniqueMr mr_;
  std::span<std::byte> memory_;
};

class IbvDomain : public Domain {
 public:
  IbvDomain(const IbvContext& context, UniquePd pd) : context_(context), pd_(std::move(pd)) {}

  Result<std::unique_ptr<Region>> register_memory(std::span<std::byte> memory,
                                                  Access access) override {
    if (memory.empty()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{}: cannot register no memory at all", context_.info.name)};
    }
    // Rights to write remotely need the local one (ibv_reg_mr(3)), and so do posted receives.
    unsigned flags = IBV_ACCESS_LOCAL_WRITE;
    if (access == Access::kRemoteWrite) flags |= IBV_ACCESS_REMOTE_WRITE;
    UniqueMr mr(ibv_reg_mr(pd_.get(), memory.data(), memory.size(), flags));
    if (!mr) {
      // The limit shows as ENOMEM, in some drivers as EAGAIN (what mlock(2) says).
      if (errno == ENOMEM || errno == EAGAIN)
        return locked_memory_error(context_.info.name, memory.size());
      return device_error(context_.info.name, "ibv_reg_mr", errno);
    }
    return std::make_unique<IbvRegion>(std::move(mr), memory);
  }

  Result<std::unique_ptr<QueuePair>> create_queue_pair(CompletionQueue& completions,
                                                       const QueuePairOptions& options) override {
    return IbvQueuePair::create(context_, pd_.get(), completions, options);
  }

 private:
  const IbvContext& context_;
  UniquePd pd_;
};

DeviceEvent port_event(EventKind kind, const ibv_async_event& event, std::string_view what) {
  const auto port = static_cast<std::uint8_t>(event.element.port_num);
  return DeviceEvent{.kind = kind, .port = port, .text = fmt::format("port {}: {}", port, what)};
}

DeviceEvent queue_pair_event(EventKind kind, const ibv_async_event& event, std::string_view what) {
  const std::uint32_t number = event.element.qp->qp_num;
  return DeviceEvent{
      .kind = kind, .qp_number = number, .text = fmt::format("queue pair {}: {}", number, what)};
}

/// Before it is acknowledged: afterwards the queue pair in it may go.
DeviceEvent to_event(const ibv_async_event& event) {
  switch (event.event_type) {
    case IBV_EVENT_PORT_ACTIVE:
      return port_event(EventKind::kPortActive, event, "link up");
    case IBV_EVENT_PORT_ERR:
      return port_event(EventKind::kPortError, event, "link down");
    case IBV_EVENT_GID_CHANGE:
      return port_event(EventKind::kGidChange, event, "addresses changed");
    case IBV_EVENT_LID_CHANGE:
      // The peer addresses us by what has just changed, as with a GID.
      return port_event(EventKind::kGidChange, event, "LID changed");
    case IBV_EVENT_DEVICE_FATAL:
      return DeviceEvent{.kind = EventKind::kDeviceFatal, .text = "the device failed"};
    case IBV_EVENT_CQ_ERR:
      // An overrun queue delivers nothing more, and ours serves the whole device context.
      return DeviceEvent{.kind = EventKind::kDeviceFatal, .text = "a completion queue failed"};
    case IBV_EVENT_QP_FATAL:
      return queue_pair_event(EventKind::kQueuePairFatal, event, "failed");
    case IBV_EVENT_QP_REQ_ERR:
      return queue_pair_event(EventKind::kAccessViolation, event, "the peer's request was invalid");
    case IBV_EVENT_QP_ACCESS_ERR:
      return queue_pair_event(EventKind::kAccessViolation, event,
                              "the peer wrote where it may not");
    default:
      return DeviceEvent{.kind = EventKind::kOther, .text = ibv_event_type_str(event.event_type)};
  }
}

class IbvDevice : public Device {
 public:
  explicit IbvDevice(IbvContext context)
      : context_(std::move(context)), events_wait_(context_.context->async_fd) {
    const int flags = ::fcntl(context_.context->async_fd, F_GETFL);
    events_block_ = flags < 0 || ::fcntl(context_.context->async_fd, F_SETFL,
                                         static_cast<unsigned>(flags) | O_NONBLOCK) != 0;
    if (events_block_)
      log_warning("rdma: {}: its events cannot be watched: {}", name(), std::strerror(errno));
  }

  [[nodiscard]] const DeviceInfo& info() const override { return context_.info; }

  Result<PortInfo> query_port(std::uint8_t number) override {
    return describe_port(context_.context.get(), number);
  }

  Result<std::unique_ptr<Domain>> create_domain() override {
    UniquePd pd(ibv_alloc_pd(context_.context.get()));
    if (!pd) return device_error(name(), "ibv_alloc_pd", errno);
    return std::make_unique<IbvDomain>(context_, std::move(pd));
  }

  Result<std::unique_ptr<CompletionQueue>> create_completion_queue(std::size_t depth) override {
    return IbvCompletionQueue::create(context_, depth);
  }

  std::optional<DeviceEvent> poll_event() override {
    if (events_block_ || gone_) return std::nullopt;
    ibv_async_event event{};
    if (ibv_get_async_event(context_.context.get(), &event) != 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return std::nullopt;
      // The kernel ends the stream of a device that was removed.
      gone_ = true;
      return DeviceEvent{.kind = EventKind::kDeviceFatal, .text = "the device was removed"};
    }
    DeviceEvent out = to_event(event);
    ibv_ack_async_event(&event);
    return out;
  }

  void arm_events(const asio::any_io_executor& executor, ReadyCallback ready) override {
    // An ended stream is readable for ever and would wake for ever.
    if (events_block_ || gone_) return;
    events_wait_.arm(executor, std::move(ready));
  }
  void give_up_waits() override { events_wait_.give_up(); }
  [[nodiscard]] int event_descriptor() const override {
    return events_block_ || gone_ ? -1 : context_.context->async_fd;
  }

 private:
  [[nodiscard]] const std::string& name() const { return context_.info.name; }

  IbvContext context_;
  FdWait events_wait_;  // After the context, whose descriptor it waits for.
  bool events_block_ = false;
  bool gone_ = false;
};

}  // namespace

std::unique_ptr<Device> make_ibv_device(IbvContext context) {
  return std::make_unique<IbvDevice>(std::move(context));
}

}  // namespace recua::net::verbs
