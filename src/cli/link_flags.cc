#include "cli/link_flags.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "net/shm/shared_memory.h"
#include "net/verbs/address.h"
#include "net/verbs/ibv_provider.h"

namespace recua::cli {
namespace {

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

constexpr std::uint32_t kDelayMaxUs = 1'000'000;

/// TCP is the last resort of all of them.
struct Transports {
  bool shared_memory = false;
  bool rdma = false;
  bool rdma_alone = false;
  bool shared_memory_alone = false;
};

Result<Transports> parse_transports(std::string_view text) {
  Transports out;
  std::size_t n_named = 0;
  for (std::string_view rest = text;; ++n_named) {
    const std::size_t comma = rest.find(',');
    const std::string_view name = rest.substr(0, comma);
    if (name == "auto") {
      out.shared_memory = true;
      out.rdma = true;
    } else if (name == "shm") {
      out.shared_memory = true;
    } else if (name == "rdma") {
      out.rdma = true;
    } else if (name != "tcp") {
      return invalid(fmt::format("--transport is '{}', need auto or some of shm,rdma,tcp", text));
    }
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  out.rdma_alone = out.rdma && !out.shared_memory && n_named == 0;
  out.shared_memory_alone = out.shared_memory && !out.rdma && n_named == 0;
  return out;
}

Result<net::verbs::PortFilter> port_filter(const LinkFlags& flags) {
  net::verbs::PortFilter filter{.devices = {}, .gid_index = flags.rdma_gid};
  if (!flags.rdma_devices.empty()) {
    auto devices = net::verbs::parse_device_list(flags.rdma_devices);
    if (!devices.ok()) return std::move(devices).error().within("--rdma-device");
    filter.devices = std::move(*devices);
  }
  return filter;
}

std::vector<rpc::RdmaPortInfo> port_infos(const std::vector<net::verbs::DeviceInfo>& devices) {
  std::vector<rpc::RdmaPortInfo> out;
  for (const net::verbs::DeviceInfo& device : devices) {
    for (const net::verbs::PortInfo& port : device.ports) {
      rpc::RdmaPortInfo& info = out.emplace_back();
      info.device = device.name;
      info.port = port.number;
      info.mtu_bytes = port.mtu_bytes;
      for (const net::verbs::GidEntry& entry : port.gids) info.gids.push_back(entry.gid);
    }
  }
  return out;
}

/// Why not, as LinkPolicy wants it, where RDMA cannot be used; an error where the user named what
/// is not there.
Result<std::optional<std::string>> look_for_rdma(LinkSetup& setup, const LinkFlags& flags) {
  const bool named = !flags.rdma_devices.empty() || flags.rdma_gid.has_value();
  const char* flag = flags.rdma_devices.empty() ? "--rdma-gid" : "--rdma-device";
  const auto devices = setup.provider->devices();
  std::string reason;
  if (!devices.ok()) {
    reason = "cannot use RDMA: " + devices.error().message;
  } else if (devices->empty()) {
    reason = "has no RDMA device";
  } else {
    const auto ports = net::verbs::choose_ports(*devices, setup.policy.ports, "");
    if (!ports.ok() && ports.error().code == ErrorCode::kInvalidArgument) {
      return Error(ports.error()).within(flag);
    }
    // A port that is down now may be up when a link looks again.
    if (!ports.ok()) log_debug("RDMA: {}", ports.error().message);
    setup.rdma_ports = port_infos(*devices);
    return std::optional<std::string>();
  }
  if (named) return invalid(fmt::format("{}: this machine {}", flag, reason));
  return std::optional<std::string>(std::move(reason));
}

}  // namespace

void LinkFlags::add(CLI::App& app) {
  app.add_option("--transport", transports,
                 "What links between processes may use: auto, or some of shm,rdma,tcp; tcp is "
                 "always the last resort")
      ->type_name("LIST")
      ->capture_default_str();
  app.add_option("--rdma-device", rdma_devices,
                 "RDMA devices to use, with ports, the preferred first (default: all that fit)")
      ->type_name("NAME[/PORT],...");
  app.add_option("--rdma-gid", rdma_gid,
                 "Index of the GID to use (default: by the address of the connection)")
      ->type_name("N");
  app.add_option("--rdma-connect", rdma_connect,
                 "How queue pairs are connected: handshake, or cm (rdma_cm)")
      ->type_name("HOW")
      ->capture_default_str();
  app.add_option("--rdma-immediate", rdma_immediate,
                 "on, or off to write without immediate data as some iWARP cards must")
      ->type_name("on|off")
      ->capture_default_str();
  app.add_option("--link-delay", delay_us,
                 "Hold received tensor messages back for so long, to try a slower network")
      ->type_name("MICROSECONDS")
      ->capture_default_str();
}

Result<void> LinkFlags::check() const {
  RECUA_ASSIGN_OR_RETURN(const Transports parsed, parse_transports(transports));
  RECUA_RETURN_IF_ERROR(port_filter(*this));
  if (rdma_connect != "handshake" && rdma_connect != "cm") {
    return invalid(fmt::format("--rdma-connect is '{}', need handshake or cm", rdma_connect));
  }
  if (rdma_immediate != "on" && rdma_immediate != "off") {
    return invalid(fmt::format("--rdma-immediate is '{}', need on or off", rdma_immediate));
  }
  if (delay_us > kDelayMaxUs) {
    return invalid(
        fmt::format("--link-delay is {}, need at most {} microseconds", delay_us, kDelayMaxUs));
  }
  if (!parsed.rdma && (!rdma_devices.empty() || rdma_gid.has_value())) {
    return invalid(fmt::format("{} needs rdma among the transports, but --transport is '{}'",
                               rdma_devices.empty() ? "--rdma-gid" : "--rdma-device", transports));
  }
  return ok();
}

std::vector<std::string> LinkFlags::arguments() const {
  std::vector<std::string> out = {"--transport", transports,         "--rdma-connect",
                                  rdma_connect,  "--rdma-immediate", rdma_immediate};
  if (!rdma_devices.empty()) out.insert(out.end(), {"--rdma-device", rdma_devices});
  if (rdma_gid.has_value()) out.insert(out.end(), {"--rdma-gid", std::to_string(*rdma_gid)});
  if (delay_us > 0) out.insert(out.end(), {"--link-delay", std::to_string(delay_us)});
  return out;
}

Result<std::unique_ptr<LinkSetup>> make_link_setup(const LinkFlags& flags,
                                                   std::unique_ptr<net::verbs::Provider> provider,
                                                   const Result<Digest>& host_identity) {
  RECUA_RETURN_IF_ERROR(flags.check());
  RECUA_ASSIGN_OR_RETURN(const Transports transports, parse_transports(flags.transports));
  auto setup = std::make_unique<LinkSetup>();
  setup->provider = std::move(provider);
  rpc::LinkPolicy& policy = setup->policy;
  RECUA_ASSIGN_OR_RETURN(policy.ports, port_filter(flags));
  policy.use_immediate = flags.rdma_immediate == "on";
  policy.use_rdma_cm = flags.rdma_connect == "cm";
  policy.delay = std::chrono::microseconds(flags.delay_us);
  if (transports.rdma) {
    RECUA_ASSIGN_OR_RETURN(std::optional<std::string> why_not, look_for_rdma(*setup, flags));
    policy.allow_rdma = !why_not.has_value();
    if (policy.allow_rdma) policy.provider = setup->provider.get();
    if (why_not.has_value()) {
      if (transports.rdma_alone) {
        log_warning("--transport rdma: this machine {}; links run over TCP", *why_not);
      }
      policy.no_rdma_reason = std::move(*why_not);
    }
  }
  if (transports.shared_memory) {
    policy.allow_shared_memory = host_identity.ok();
    if (host_identity.ok()) {
      policy.host_identity = std::string(as_text(*host_identity));
      setup->shared_memory_host = policy.host_identity;
    } else if (transports.shared_memory_alone) {
      log_warning("--transport shm: {}; links run over TCP", host_identity.error().message);
    } else {
      log_debug("{}", host_identity.error().message);
    }
  }
  return setup;
}

Result<std::unique_ptr<LinkSetup>> make_link_setup(const LinkFlags& flags) {
  return make_link_setup(flags, net::verbs::make_ibv_provider(), net::shm::host_identity());
}

}  // namespace recua::cli
