// The objects of a fake device: each takes the fabric's mutex, checks what libibverbs and the
// driver check at the call, and leaves the rest to fake_delivery.cc.
#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/random.h"
#include "net/verbs/fake_state.h"

namespace recua::net::verbs {
namespace {

constexpr std::uint32_t kMax24 = 0xffffff;

Error refused(const FakeDeviceState& device, std::string_view call, std::string_view why) {
  return {ErrorCode::kIo, fmt::format("{}: {}: {}", device.info.name, call, why)};
}
Error gone(const FakeDeviceState& device, std::string_view call) {
  return refused(device, call, "Input/output error: the device was removed");
}

/// A card may use memory until its region ends: this fails when the memory has gone before. Its
/// owner may be writing there.
__attribute__((no_sanitize("thread"))) void touch(std::span<const std::byte> memory) {
  (void)*static_cast<const volatile std::byte*>(memory.data());
  (void)*static_cast<const volatile std::byte*>(&memory.back());
}

class FakeRegion final : public Region {
 public:
  FakeRegion(std::shared_ptr<FabricState> fabric, FakeDeviceState& device, FakeRegionState state,
             std::size_t& n_children)
      : fabric_(std::move(fabric)), device_(device), state_(state), n_children_(n_children) {
    fabric_->by_lkey[state_.lkey] = &state_;
    fabric_->by_rkey[state_.rkey] = &state_;
    device_.locked_bytes += state_.memory.size();
    ++n_children_;
    ++fabric_->counts.regions;
  }
  ~FakeRegion() override {
    const std::lock_guard lock(fabric_->mutex);
    touch(state_.memory);
    fabric_->by_lkey.erase(state_.lkey);
    fabric_->by_rkey.erase(state_.rkey);
    device_.locked_bytes -= state_.memory.size();
    --n_children_;
    --fabric_->counts.regions;
  }

  [[nodiscard]] std::span<std::byte> memory() const override { return state_.memory; }
  [[nodiscard]] std::uint32_t lkey() const override { return state_.lkey; }
  [[nodiscard]] std::uint32_t rkey() const override { return state_.rkey; }

 private:
  std::shared_ptr<FabricState> fabric_;
  FakeDeviceState& device_;
  FakeRegionState state_;
  std::size_t& n_children_;
};

class FakeQueue final : public CompletionQueue {
 public:
  FakeQueue(std::shared_ptr<FabricState> fabric, const FakeDeviceState& device, std::size_t depth,
            std::size_t& n_children)
      : fabric_(std::move(fabric)), device_(device), state_(depth), n_children_(n_children) {
    ++n_children_;
    ++fabric_->counts.queues;
  }
  ~FakeQueue() override {
    const std::lock_guard lock(fabric_->mutex);
    for (const auto& [number, pair] : fabric_->pairs) RECUA_CHECK(pair->queue != &state_);
    --n_children_;
    --fabric_->counts.queues;
  }

  Result<std::size_t> poll(std::span<Completion> out) override {
    const std::lock_guard lock(fabric_->mutex);
    std::size_t n = 0;
    for (; n < out.size() && !state_.entries.empty(); ++n) {
      const FakeQueueState::Entry entry = state_.entries.pop();
      out[n] = entry.completion;
      if (entry.is_receive) {
        --entry.pair->receives_busy;
      } else {
        entry.pair->sends_freed = std::max(entry.pair->sends_freed, entry.slot + 1);
      }
    }
    if (n == 0 && state_.overrun) return refused(device_, "ibv_poll_cq", "the queue was overrun");
    return n;
  }
  void arm(const asio::any_io_executor& executor, ReadyCallback ready) override {
    const std::lock_guard lock(fabric_->mutex);
    state_.wakeup.arm(executor, std::move(ready));
  }
  void give_up_waits() override {
    const std::lock_guard lock(fabric_->mutex);
    state_.wakeup.give_up();
  }

  FakeQueueState& state() { return state_; }

 private:
  std::shared_ptr<FabricState> fabric_;
  const FakeDeviceState& device_;
  FakeQueueState state_;
  std::size_t& n_children_;
};

class FakePair final : public QueuePair {
 public:
  FakePair(std::shared_ptr<FabricState> fabric, std::unique_ptr<FakePairState> state,
           std::uint32_t inline_bytes, std::size_t& n_children)
      : fabric_(std::move(fabric)),
        state_(std::move(state)),
        inline_bytes_(inline_bytes),
        n_children_(n_children) {
    fabric_->pairs[state_->number] = state_.get();
    ++n_children_;
    ++fabric_->counts.queue_pairs;
  }
  ~FakePair() override {
    std::unique_lock lock(fabric_->mutex);
    fabric_->ends.wait(lock, [this] { return !fabric_->hold_ends; });
    std::erase_if(fabric_->flights, [&](const FakeFlight& f) { return f.pair == state_.get(); });
    auto& entries = state_->queue->entries;
    for (std::size_t n = entries.size(); n > 0; --n)
      if (auto entry = entries.pop(); entry.pair != state_.get()) entries.push(entry);
    fabric_->pairs.erase(state_->number);
    --n_children_;
    --fabric_->counts.queue_pairs;
  }

  [[nodiscard]] std::uint32_t number() const override { return state_->number; }
  [[nodiscard]] std::uint32_t inline_bytes_max() const override { return inline_bytes_; }

  Result<void> connect(const ConnectParameters& parameters) override {
    const std::lock_guard lock(fabric_->mutex);
    FakeDeviceState& device = state_->device();
    constexpr std::string_view kCall = "ibv_modify_qp";
    if (device.removed) return gone(device, kCall);
    if (state_->phase != FakePairState::Phase::kInit)
      return refused(device, kCall, "Invalid argument: the queue pair is not in INIT");
    const std::uint32_t mtu = parameters.mtu_bytes;
    const bool is_mtu = mtu == 256 || mtu == 512 || mtu == 1024 || mtu == 2048 || mtu == 4096;
    if (!is_mtu || mtu > device.port().mtu_bytes || parameters.remote_qp_number > kMax24 ||
        parameters.remote_psn > kMax24 || parameters.local_psn > kMax24 ||
        parameters.retry_count > 7 || parameters.address.port != state_->options.port ||
        !parameters.address.is_global || device.find_gid(parameters.address.gid_index) == nullptr) {
      return refused(device, kCall, "Invalid argument");
    }
    // The driver looks up the next hop here, which nobody answers for.
    if (std::ranges::none_of(fabric_->devices, [&](const auto& other) {
          return other->has_gid(parameters.address.gid);
        })) {
      return refused(device, kCall, "Connection timed out: no host has that address");
    }
    state_->parameters = parameters;
    state_->phase = FakePairState::Phase::kReady;
    return ok();
  }

  Result<void> post_send(std::span<const SendRequest> requests) override {
    const std::lock_guard lock(fabric_->mutex);
    FakePairState& state = *state_;
    RECUA_RETURN_IF_ERROR(check(requests));
    for (const SendRequest& request : requests) {
      const std::uint64_t slot = state.sends_posted++;
      if (fabric_->hold && state.phase == FakePairState::Phase::kReady) {
        keep(request, slot);
      } else {
        fake_execute(*fabric_, state, request, slot);
      }
    }
    return ok();
  }

  Result<void> post_receive(std::span<const ReceiveRequest> requests) override {
    const std::lock_guard lock(fabric_->mutex);
    FakePairState& state = *state_;
    if (state.device().removed) return gone(state.device(), "ibv_post_recv");
    if (state.receives_busy + requests.size() > state.options.receive_depth) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{}: ibv_post_recv: all {} receives are posted",
                               state.device().info.name, state.options.receive_depth)};
    }
    for (const ReceiveRequest& request : requests) {
      state.receives.push(request);
      ++state.receives_busy;
    }
    if (state.phase == FakePairState::Phase::kError) fake_flush_receives(state);
    return ok();
  }

  Result<void> set_error() override {
    const std::lock_guard lock(fabric_->mutex);
    if (state_->device().removed) return gone(state_->device(), "ibv_modify_qp");
    fake_enter_error(*fabric_, *state_);
    return ok();
  }

 private:
  Result<void> check(std::span<const SendRequest> requests) const {
    const FakePairState& state = *state_;
    const FakeDeviceState& device = state.device();
    constexpr std::string_view kCall = "ibv_post_send";
    if (device.removed) return gone(device, kCall);
    if (state.phase == FakePairState::Phase::kInit)
      return refused(device, kCall, "Invalid argument: the queue pair is not connected");
    if (state.sends_posted - state.sends_freed + requests.size() > state.options.send_depth) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{}: {}: the queue of {} requests is full", device.info.name, kCall,
                               state.options.send_depth)};
    }
    for (const SendRequest& request : requests) {
      std::uint64_t bytes = 0;
      for (const Segment& segment : request.segments) bytes += segment.bytes;
      if (request.segments.size() > state.options.segments_max)
        return refused(device, kCall, "Invalid argument: too many segments");
      if (request.inline_data && bytes > inline_bytes_)
        return refused(device, kCall, "Invalid argument: too much inline data");
      if (request.operation == Operation::kWriteImmediate && !device.limits.immediates)
        return refused(device, kCall, "Invalid argument: the device has no immediate data");
    }
    return ok();
  }

  /// Data that is not inline is read when the request is carried out, as a card does.
  void keep(const SendRequest& request, std::uint64_t slot) {
    FakeFlight& flight = fabric_->flights.emplace_back();
    flight = {.pair = state_.get(),
              .request = request,
              .segments = {request.segments.begin(), request.segments.end()},
              .inline_bytes = {},
              .slot = slot};
    if (request.inline_data) {
      for (const Segment& segment : request.segments)
        flight.inline_bytes.insert(flight.inline_bytes.end(), segment.data,
                                   segment.data + segment.bytes);
      flight.segments = {{.data = flight.inline_bytes.data(),
                          .bytes = static_cast<std::uint32_t>(flight.inline_bytes.size())}};
    }
    flight.request.segments = flight.segments;
  }

  std::shared_ptr<FabricState> fabric_;
  std::unique_ptr<FakePairState> state_;
  std::uint32_t inline_bytes_;
  std::size_t& n_children_;
};

class FakeDomain final : public Domain {
 public:
  FakeDomain(std::shared_ptr<FabricState> fabric, FakeContextState& context,
             std::size_t& n_siblings)
      : fabric_(std::move(fabric)),
        context_(context),
        id_(++fabric_->n_domains),
        n_siblings_(n_siblings) {
    ++n_siblings_;
    ++fabric_->counts.domains;
  }
  ~FakeDomain() override {
    const std::lock_guard lock(fabric_->mutex);
    RECUA_CHECK(n_children_ == 0);  // EBUSY of ibv_dealloc_pd
    --n_siblings_;
    --fabric_->counts.domains;
  }

  Result<std::unique_ptr<Region>> register_memory(std::span<std::byte> memory,
                                                  Access access) override {
    const std::lock_guard lock(fabric_->mutex);
    FakeDeviceState& device = *context_.device;
    if (device.removed) return gone(device, "ibv_reg_mr");
    const std::uint64_t limit = device.limits.locked_bytes_max;
    if (memory.size() > limit || device.locked_bytes > limit - memory.size()) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{}: cannot lock {} bytes of memory besides {}, the limit is {}: "
                               "raise it with \"ulimit -l unlimited\" or LimitMEMLOCK=infinity",
                               device.info.name, memory.size(), device.locked_bytes, limit)};
    }
    const std::uint32_t number = ++fabric_->n_numbers;
    const auto key = static_cast<std::uint32_t>(mix(number)) << 16;
    const FakeRegionState state{.domain = id_,
                                .memory = memory,
                                .access = access,
                                .lkey = key ^ (2 * number),
                                .rkey = key ^ (2 * number + 1)};
    return std::make_unique<FakeRegion>(fabric_, device, state, n_children_);
  }

  Result<std::unique_ptr<QueuePair>> create_queue_pair(CompletionQueue& completions,
                                                       const QueuePairOptions& options) override {
    const std::lock_guard lock(fabric_->mutex);
    const FakeDeviceState& device = *context_.device;
    std::uint32_t inline_bytes = options.inline_bytes;
    while (inline_bytes > device.limits.inline_bytes_max) inline_bytes /= 2;
    if (device.removed) return gone(device, "ibv_create_qp");
    if (options.port != 1 || options.segments_max > device.limits.sge_max ||
        options.send_depth > device.info.send_depth_max ||
        options.receive_depth > device.info.send_depth_max) {
      return refused(device, "ibv_create_qp", "Invalid argument");
    }
    auto state = std::make_unique<FakePairState>(options);
    state->context = &context_;
    state->domain = id_;
    state->queue = &static_cast<FakeQueue&>(completions).state();
    state->number = 0x100 + ++fabric_->n_numbers;
    return std::make_unique<FakePair>(fabric_, std::move(state), inline_bytes, n_children_);
  }

 private:
  std::shared_ptr<FabricState> fabric_;
  FakeContextState& context_;
  std::uint64_t id_;
  std::size_t n_children_ = 0;
  std::size_t& n_siblings_;
};

class FakeDevice final : public Device {
 public:
  FakeDevice(std::shared_ptr<FabricState> fabric, FakeDeviceState& device)
      : fabric_(std::move(fabric)), info_(device.info) {
    context_.device = &device;
    device.contexts.push_back(&context_);
    ++fabric_->counts.contexts;
  }
  ~FakeDevice() override {
    const std::lock_guard lock(fabric_->mutex);
    RECUA_CHECK(n_children_ == 0);  // They would use a closed context.
    std::erase(context_.device->contexts, &context_);
    --fabric_->counts.contexts;
  }

  [[nodiscard]] const DeviceInfo& info() const override { return info_; }
  Result<PortInfo> query_port(std::uint8_t number) override {
    const std::lock_guard lock(fabric_->mutex);
    FakeDeviceState& device = *context_.device;
    if (device.removed) return gone(device, "ibv_query_port");
    if (number != 1) return refused(device, "ibv_query_port", "Invalid argument");
    return device.port();
  }
  Result<std::unique_ptr<Domain>> create_domain() override {
    const std::lock_guard lock(fabric_->mutex);
    if (context_.device->removed) return gone(*context_.device, "ibv_alloc_pd");
    return std::make_unique<FakeDomain>(fabric_, context_, n_children_);
  }
  Result<std::unique_ptr<CompletionQueue>> create_completion_queue(std::size_t depth) override {
    const std::lock_guard lock(fabric_->mutex);
    if (context_.device->removed) return gone(*context_.device, "ibv_create_cq");
    if (depth == 0) return refused(*context_.device, "ibv_create_cq", "Invalid argument");
    return std::make_unique<FakeQueue>(fabric_, *context_.device, depth, n_children_);
  }
  std::optional<DeviceEvent> poll_event() override {
    const std::lock_guard lock(fabric_->mutex);
    if (context_.events.empty()) return std::nullopt;
    DeviceEvent event = std::move(context_.events.front());
    context_.events.pop_front();
    return event;
  }
  void arm_events(const asio::any_io_executor& executor, ReadyCallback ready) override {
    const std::lock_guard lock(fabric_->mutex);
    context_.wakeup.arm(executor, std::move(ready));
    if (!context_.events.empty()) context_.wakeup.fire();
  }
  void give_up_waits() override {
    const std::lock_guard lock(fabric_->mutex);
    context_.wakeup.give_up();
  }

 private:
  std::shared_ptr<FabricState> fabric_;
  DeviceInfo info_;
  FakeContextState context_;
  std::size_t n_children_ = 0;
};

}  // namespace

std::unique_ptr<Device> fake_open(std::shared_ptr<FabricState> fabric, FakeDeviceState& device) {
  return std::make_unique<FakeDevice>(std::move(fabric), device);
}

}  // namespace recua::net::verbs
