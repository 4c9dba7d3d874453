#include "net/verbs/ibv_provider.h"

#include <sys/resource.h>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

/// ibv_get_device_list's array; names and devices stay valid while it lives, opened ones longer.
class DeviceList {
 public:
  static Result<DeviceList> read() {
    int n = 0;
    ibv_device** const devices = ibv_get_device_list(&n);
    if (devices == nullptr) {
      // Not an empty list: the kernel's RDMA core is not there at all.
      if (errno == ENOSYS) {
        return Error{ErrorCode::kUnsupported,
                     "this kernel has no RDMA (its module ib_uverbs is missing or not loaded)"};
      }
      return Error{ErrorCode::kIo,
                   fmt::format("cannot list RDMA devices: {}", std::strerror(errno))};
    }
    return DeviceList(devices, static_cast<std::size_t>(n));
  }

  [[nodiscard]] std::span<ibv_device* const> devices() const { return {list_.get(), n_}; }

 private:
  DeviceList(ibv_device** devices, std::size_t n) : list_(devices), n_(n) {}

  std::unique_ptr<ibv_device*[], decltype([](ibv_device** l) { ibv_free_device_list(l); })> list_;
  std::size_t n_ = 0;
};

Result<IbvContext> open_device(ibv_device* device) {
  IbvContext out;
  out.context.reset(ibv_open_device(device));
  const char* const name = ibv_get_device_name(device);
  if (!out.context) {
    if (errno == EACCES || errno == EPERM) {
      return Error{ErrorCode::kIo, fmt::format("{}: this user may not open /dev/infiniband/{}",
                                               name, static_cast<const char*>(device->dev_name))};
    }
    return device_error(name, "ibv_open_device", errno != 0 ? errno : ENODEV);
  }
  RECUA_ASSIGN_OR_RETURN(out.info, describe_device(out.context.get(), &out.completions_max));
  return out;
}

class IbvProvider : public Provider {
 public:
  Result<std::vector<DeviceInfo>> devices() override {
    RECUA_ASSIGN_OR_RETURN(const DeviceList list, DeviceList::read());
    std::vector<DeviceInfo> out;
    std::optional<Error> first_error;
    for (ibv_device* const device : list.devices()) {
      Result<IbvContext> context = open_device(device);
      if (context.ok()) {
        out.push_back(std::move(context->info));
      } else {
        // One device that is in use or on its way out does not hide the others.
        log_warning("rdma: {}", context.error().message);
        if (!first_error) first_error = std::move(context).error();
      }
    }
    if (out.empty() && first_error) return *std::move(first_error);
    return out;
  }

  Result<std::unique_ptr<Device>> open(const std::string& name) override {
    RECUA_ASSIGN_OR_RETURN(const DeviceList list, DeviceList::read());
    std::vector<std::string_view> names;
    for (ibv_device* const device : list.devices()) {
      names.emplace_back(ibv_get_device_name(device));
      if (names.back() != name) continue;
      RECUA_ASSIGN_OR_RETURN(IbvContext context, open_device(device));
      return make_ibv_device(std::move(context));
    }
    return Error{ErrorCode::kNotFound,
                 names.empty() ? fmt::format("there is no RDMA device '{}', nor any other", name)
                               : fmt::format("there is no RDMA device '{}'; there is {}", name,
                                             fmt::join(names, ", "))};
  }
};

std::string to_text(std::uint64_t bytes) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  if (bytes < kMiB) return fmt::format("{} KiB", (bytes + 1023) >> 10);
  return fmt::format("{} MiB", (bytes + kMiB - 1) / kMiB);
}

}  // namespace

Error device_error(std::string_view device, std::string_view call, int system_error) {
  if (system_error == EBUSY || system_error == EAGAIN) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("{}: the device is busy ({} says: {}); another process may hold it",
                             device, call, std::strerror(system_error))};
  }
  const ErrorCode code = system_error == ENOMEM ? ErrorCode::kResourceExhausted : ErrorCode::kIo;
  return Error{code, fmt::format("{}: {} failed: {}", device, call, std::strerror(system_error))};
}

Error locked_memory_error(std::string_view device, std::uint64_t bytes) {
  rlimit limit{};
  const bool known = getrlimit(RLIMIT_MEMLOCK, &limit) == 0;
  if (known && limit.rlim_cur == RLIM_INFINITY) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("{}: cannot lock {} of memory for RDMA although no limit is set: the "
                             "machine or the device has no more of it",
                             device, to_text(bytes))};
  }
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("{}: cannot lock {} of memory for RDMA: this process may lock {} in all. Raise "
                  "the limit with `ulimit -l unlimited` in the shell, LimitMEMLOCK=infinity in a "
                  "systemd unit, or `--ulimit memlock=-1` for a container",
                  device, to_text(bytes), known ? to_text(limit.rlim_cur) : "too little")};
}

bool built_with_verbs() { return true; }

std::string_view verbs_version() { return "libibverbs " RECUA_LIBIBVERBS_VERSION; }

std::unique_ptr<Provider> make_ibv_provider() { return std::make_unique<IbvProvider>(); }

}  // namespace recua::net::verbs
