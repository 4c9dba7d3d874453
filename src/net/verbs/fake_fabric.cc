#include "net/verbs/fake_fabric.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "net/verbs/address.h"
#include "net/verbs/fake_state.h"

namespace recua::net::verbs {
namespace {

GidEntry make_entry(std::uint32_t index, const std::string& address) {
  const auto gid = parse_gid(address);
  RECUA_CHECK(gid);  // Addresses come from tests only.
  return {.index = index,
          .gid = *gid,
          .type = GidType::kRoceV2,
          .interface = "eth0",
          .prefix_length = static_cast<std::uint8_t>(is_ipv4(*gid) ? 120 : 64)};
}

void raise_all(FakeDeviceState& device, const DeviceEvent& event) {
  for (FakeContextState* context : device.contexts) fake_raise(*context, event);
}

class FakeProvider final : public Provider {
 public:
  FakeProvider(std::shared_ptr<FabricState> fabric, std::string host)
      : fabric_(std::move(fabric)), host_(std::move(host)) {}

  Result<std::vector<DeviceInfo>> devices() override {
    const std::lock_guard lock(fabric_->mutex);
    std::vector<DeviceInfo> out;
    for (const auto& device : fabric_->devices)
      if (device->host == host_ && !device->removed) out.push_back(device->info);
    return out;
  }

  Result<std::unique_ptr<Device>> open(const std::string& name) override {
    const std::lock_guard lock(fabric_->mutex);
    std::vector<std::string> names;
    for (const auto& device : fabric_->devices) {
      if (device->host != host_ || device->removed) continue;
      if (device->info.name == name) {
        if (device->busy) {
          return Error{ErrorCode::kResourceExhausted,
                       fmt::format("{}: ibv_open_device: Device or resource busy", name)};
        }
        return fake_open(fabric_, *device);
      }
      names.push_back(device->info.name);
    }
    return Error{ErrorCode::kNotFound,
                 fmt::format("there is no RDMA device \"{}\", only: {}", name,
                             names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")))};
  }

 private:
  std::shared_ptr<FabricState> fabric_;
  std::string host_;
};

}  // namespace

const GidEntry* FakeDeviceState::find_gid(std::uint32_t index) {
  const auto& gids = port().gids;
  const auto found = std::ranges::find(gids, index, &GidEntry::index);
  return found == gids.end() ? nullptr : &*found;
}

bool FakeDeviceState::has_gid(const Gid& gid) {
  return std::ranges::find(port().gids, gid, &GidEntry::gid) != port().gids.end();
}

FakeDeviceState& FabricState::device(const std::string& name) {
  // From the back: a device that was removed may have been added again.
  const auto found = std::find_if(devices.rbegin(), devices.rend(), [&](const auto& candidate) {
    return candidate->info.name == name;
  });
  RECUA_CHECK(found != devices.rend());
  return **found;
}

FakeFabric::FakeFabric() : state_(std::make_shared<FabricState>()) {}
FakeFabric::~FakeFabric() = default;

void FakeFabric::add_device(const std::string& host, const std::string& name,
                            const std::vector<std::string>& addresses, const FakeLimits& limits) {
  const std::lock_guard lock(state_->mutex);
  auto device = std::make_unique<FakeDeviceState>();
  device->host = host;
  device->limits = limits;
  PortInfo port{.number = 1,
                .state = PortState::kActive,
                .link_layer = LinkLayer::kEthernet,
                .mtu_bytes = 4096,
                .speed_mbit = 100'000,
                .message_bytes_max = limits.message_bytes_max,
                .gids = {}};
  port.gids.push_back(make_entry(0, fmt::format("fe80::{:x}", state_->devices.size() + 1)));
  for (const std::string& address : addresses)
    port.gids.push_back(make_entry(static_cast<std::uint32_t>(port.gids.size()), address));
  device->info = {.name = name,
                  .transport = limits.transport,
                  .sge_max = limits.sge_max,
                  .send_depth_max = 16384,
                  .ports = {std::move(port)}};
  state_->devices.push_back(std::move(device));
}

std::unique_ptr<Provider> FakeFabric::provider(const std::string& host) {
  return std::make_unique<FakeProvider>(state_, host);
}

void FakeFabric::fail_sends(const std::string& device, Status status, int n) {
  const std::lock_guard lock(state_->mutex);
  auto& faults = state_->device(device).send_faults;
  faults.insert(faults.end(), static_cast<std::size_t>(n), status);
}

void FakeFabric::fail_receives(const std::string& device, Status status, int n) {
  const std::lock_guard lock(state_->mutex);
  auto& faults = state_->device(device).receive_faults;
  faults.insert(faults.end(), static_cast<std::size_t>(n), status);
}

void FakeFabric::set_port_up(const std::string& device, bool up) {
  const std::lock_guard lock(state_->mutex);
  FakeDeviceState& state = state_->device(device);
  const PortState wished = up ? PortState::kActive : PortState::kDown;
  if (std::exchange(state.port().state, wished) == wished) return;
  raise_all(state, {.kind = up ? EventKind::kPortActive : EventKind::kPortError,
                    .port = 1,
                    .text = up ? "port 1: link up" : "port 1: link down"});
}

void FakeFabric::set_silent(const std::string& device, bool silent) {
  const std::lock_guard lock(state_->mutex);
  state_->device(device).silent = silent;
}

void FakeFabric::change_gid(const std::string& device, std::uint32_t index,
                            const std::string& address) {
  const std::lock_guard lock(state_->mutex);
  FakeDeviceState& state = state_->device(device);
  auto& gids = state.port().gids;
  const auto found = std::ranges::find(gids, index, &GidEntry::index);
  RECUA_CHECK(found != gids.end());
  *found = make_entry(index, address);
  raise_all(state, {.kind = EventKind::kGidChange, .port = 1, .text = "port 1: GID table changed"});
}

void FakeFabric::remove_device(const std::string& device) {
  const std::lock_guard lock(state_->mutex);
  FakeDeviceState& state = state_->device(device);
  state.removed = true;
  raise_all(state, {.kind = EventKind::kDeviceFatal, .text = "the device was removed"});
}

void FakeFabric::raise(const std::string& device, const DeviceEvent& event) {
  const std::lock_guard lock(state_->mutex);
  raise_all(state_->device(device), event);
}

void FakeFabric::set_busy(const std::string& device, bool busy) {
  const std::lock_guard lock(state_->mutex);
  state_->device(device).busy = busy;
}

void FakeFabric::set_limits(const std::string& device, const FakeLimits& limits) {
  const std::lock_guard lock(state_->mutex);
  FakeDeviceState& state = state_->device(device);
  state.limits = limits;
  state.info.transport = limits.transport;
  state.info.sge_max = limits.sge_max;
  state.port().message_bytes_max = limits.message_bytes_max;
}

FakeCounts FakeFabric::counts_in_the_end() const {
  for (int i = 0; i < 5000 && counts() != FakeCounts{}; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return counts();
}

void FakeFabric::hold_ends(bool on) {
  const std::lock_guard lock(state_->mutex);
  state_->hold_ends = on;
  state_->ends.notify_all();
}

void FakeFabric::hold(bool on) {
  const std::lock_guard lock(state_->mutex);
  state_->hold = on;
  if (!on) fake_release(*state_, -1);
}

std::size_t FakeFabric::release(int n) {
  const std::lock_guard lock(state_->mutex);
  return fake_release(*state_, n);
}

FakeCounts FakeFabric::counts() const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts;
}

}  // namespace recua::net::verbs
