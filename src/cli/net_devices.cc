// What recua would do with a port is asked from the same functions that choose ports for links, so
// this page cannot say something else than what happens.
#include "cli/net_devices.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/progress.h"
#include "cli/text_table.h"

namespace recua::cli {
namespace {

using net::verbs::DeviceInfo;
using net::verbs::GidEntry;
using net::verbs::GidType;
using net::verbs::LinkLayer;
using net::verbs::PortInfo;
using net::verbs::PortState;
using net::verbs::Transport;
using nlohmann::ordered_json;

std::string_view state_name(PortState state) {
  switch (state) {
    case PortState::kDown:
      return "down";
    case PortState::kInit:
      return "init";
    case PortState::kArmed:
      return "armed";
    case PortState::kActive:
      return "active";
    case PortState::kUnknown:
      break;
  }
  return "unknown";
}

std::string_view link_layer_name(LinkLayer layer) {
  switch (layer) {
    case LinkLayer::kEthernet:
      return "Ethernet";
    case LinkLayer::kInfiniBand:
      return "InfiniBand";
    case LinkLayer::kUnknown:
      break;
  }
  return "unknown";
}

std::string_view transport_name(Transport transport) {
  switch (transport) {
    case Transport::kInfiniBand:
      return "InfiniBand";  // The verbs' name for it; RoCE is that on Ethernet.
    case Transport::kIwarp:
      return "iWARP";
    case Transport::kUnknown:
      break;
  }
  return "unknown";
}

std::string port_name(const DeviceInfo& device, const PortInfo& port) {
  return fmt::format("{}/{}", device.name, port.number);
}

std::string speed_text(std::uint64_t mbit) {
  if (mbit == 0) return "?";
  if (mbit < 1000) return fmt::format("{} Mbit/s", mbit);
  return mbit % 1000 == 0 ? fmt::format("{} Gbit/s", mbit / 1000)
                          : fmt::format("{:.1f} Gbit/s", static_cast<double>(mbit) / 1000.0);
}

/// What is said about a port and each of its GIDs.
struct Verdict {
  bool usable = false;
  std::string reason = {};
  std::optional<std::uint32_t> gid_index =
      {};  // Of the GID that a link takes if none fits the address.
};

Verdict judge(const DeviceInfo& device, const PortInfo& port) {
  if (auto why = net::verbs::why_unusable(device, port)) return {.reason = std::move(*why)};
  // As if there were no other: then only this port and its best GID come out.
  net::verbs::PortFilter only;
  only.devices = {port_name(device, port)};
  const auto chosen = net::verbs::choose_ports({device}, only, "");
  if (!chosen.ok()) return {.reason = chosen.error().message};
  if (chosen->empty()) return {.reason = "no GID that can be used"};
  const net::verbs::PortChoice& choice = chosen->front();
  const std::string described = net::verbs::describe(net::verbs::port_address(choice));
  // Without the port's name, which stands beside it.
  return {.usable = true,
          .reason = described.substr(std::min(described.find(' '), described.size() - 1) + 1),
          .gid_index = choice.gid.index};
}

Verdict judge(const PortInfo& port, const Verdict& of_port, const GidEntry& gid) {
  if (!of_port.usable) return {.reason = "the port cannot be used"};
  if (of_port.gid_index == gid.index) return {.usable = true, .reason = "first choice"};
  const bool has_v2 = std::any_of(port.gids.begin(), port.gids.end(), [](const GidEntry& other) {
    return other.type == GidType::kRoceV2;
  });
  if (gid.type == GidType::kRoceV1 && has_v2) {
    return {.reason = "RoCEv1 does not cross routers, and there is RoCEv2"};
  }
  if (net::verbs::is_link_local(gid.gid)) {
    return {.usable = true, .reason = "link-local, when the link's connection has this address"};
  }
  return {.usable = true, .reason = "when the link's connection has this address"};
}

std::string address_text(const GidEntry& gid) {
  std::string out = net::verbs::to_string(gid.gid);
  if (gid.prefix_length == 0) return out;
  // The length counts bits of the GID, in which an IPv4 address is the last 32.
  const int bits = net::verbs::is_ipv4(gid.gid) ? gid.prefix_length - 96 : gid.prefix_length;
  return bits > 0 ? fmt::format("{}/{}", out, bits) : out;
}

std::string locked_text(const DeviceSurvey& survey) {
  if (!survey.locked_bytes_max) return "Locked memory: no limit.\n";
  std::string out =
      fmt::format("Locked memory: at most {} per process", bytes_text(*survey.locked_bytes_max));
  if (*survey.locked_bytes_max >= kLockedBytesWanted) return out + ".\n";
  return out +
         ". Buffers of RDMA are locked: raise it, if links fall back to TCP\n  (`ulimit -l "
         "unlimited`, LimitMEMLOCK=infinity in systemd, --ulimit memlock=-1 in containers).\n";
}

ordered_json gid_json(const GidEntry& gid, const Verdict& verdict) {
  ordered_json out;
  out["index"] = gid.index;
  out["type"] = net::verbs::to_string(gid.type);
  out["address"] = net::verbs::to_string(gid.gid);
  out["interface"] = gid.interface;
  out["prefix_length"] = gid.prefix_length;
  out["usable"] = verdict.usable;
  out["reason"] = verdict.reason;
  return out;
}

ordered_json port_json(const DeviceInfo& device, const PortInfo& port) {
  const Verdict verdict = judge(device, port);
  ordered_json out;
  out["port"] = port.number;
  out["state"] = state_name(port.state);
  out["link_layer"] = link_layer_name(port.link_layer);
  out["mtu_bytes"] = port.mtu_bytes;
  out["speed_mbit"] = port.speed_mbit;
  out["lid"] = port.lid;
  out["message_bytes_max"] = port.message_bytes_max;
  out["usable"] = verdict.usable;
  out["reason"] = verdict.reason;
  out["gid_index"] = verdict.gid_index ? ordered_json(*verdict.gid_index) : ordered_json(nullptr);
  out["gids"] = ordered_json::array();
  for (const GidEntry& gid : port.gids) {
    out["gids"].push_back(gid_json(gid, judge(port, verdict, gid)));
  }
  return out;
}

std::vector<std::string> advice_for(bool built_with_verbs, const Result<void>& asked) {
  if (!built_with_verbs) {
    return {"install libibverbs-dev and librdmacm-dev and build recua again"};
  }
  if (!asked.ok()) {
    return {"load the driver of the card (`lspci` names it), then `modprobe ib_uverbs`",
            "install rdma-core, libibverbs1 and ibverbs-providers",
            "in a container: pass --device /dev/infiniband and use the host's network"};
  }
  return {"`lspci` shows whether a card is there, `dmesg` what its driver says",
          "`rdma link` and `ibv_devinfo` (packages iproute2, ibverbs-utils) should list it",
          "without a card, for trying things out: `rdma link add rxe0 type rxe netdev eth0`"};
}

}  // namespace

Result<DeviceSurvey> survey_devices(net::verbs::Provider& provider, bool built_with_verbs,
                                    std::optional<std::uint64_t> locked_bytes_max) {
  DeviceSurvey out;
  out.locked_bytes_max = locked_bytes_max;
  if (!built_with_verbs) {
    out.reason = "this recua was built without libibverbs";
    out.advice = advice_for(false, ok());
    return out;
  }
  auto found = provider.devices();
  if (found.ok() && !found->empty()) {
    out.devices = std::move(*found);
    return out;
  }
  if (!found.ok() && found.error().code != ErrorCode::kUnsupported) return found.error();
  out.reason =
      found.ok() ? "the kernel supports RDMA, but there is no RDMA device" : found.error().message;
  out.advice = advice_for(true, found.ok() ? ok() : Result<void>(found.error()));
  return out;
}

std::string devices_text(const DeviceSurvey& survey) {
  if (survey.devices.empty()) {
    std::string out = fmt::format("No RDMA: {}.\n", survey.reason);
    for (const std::string& line : survey.advice) out += fmt::format("  - {}\n", line);
    return out + "Links use shared memory on one host and TCP between hosts.\n";
  }
  std::vector<std::vector<std::string>> ports = {
      {"port", "state", ">speed", ">mtu", "link layer", "used", "why"}};
  std::vector<std::vector<std::string>> gids = {
      {"port", ">gid", "type", "address", "interface", "used", "why"}};
  for (const DeviceInfo& device : survey.devices) {
    if (device.ports.empty()) {
      ports.push_back({device.name, "-", "-", "-", "-", "no", "the device has no port"});
    }
    for (const PortInfo& port : device.ports) {
      const Verdict verdict = judge(device, port);
      std::string layer(link_layer_name(port.link_layer));
      if (device.transport != Transport::kInfiniBand) {
        layer += fmt::format(" ({})", transport_name(device.transport));
      }
      ports.push_back({port_name(device, port), std::string(state_name(port.state)),
                       speed_text(port.speed_mbit), fmt::format("{}", port.mtu_bytes),
                       std::move(layer), verdict.usable ? "yes" : "no", verdict.reason});
      for (const GidEntry& gid : port.gids) {
        const Verdict of_gid = judge(port, verdict, gid);
        gids.push_back({port_name(device, port), fmt::format("{}", gid.index),
                        std::string(net::verbs::to_string(gid.type)), address_text(gid),
                        gid.interface.empty() ? "?" : gid.interface, of_gid.usable ? "yes" : "no",
                        of_gid.reason});
      }
    }
  }
  std::string out = text_table(std::move(ports)) + "\n";
  out += gids.size() > 1 ? text_table(std::move(gids)) : "No port has a GID.\n";
  return out + "\n" + locked_text(survey);
}

std::string devices_json(const DeviceSurvey& survey) {
  ordered_json out;
  out["devices"] = ordered_json::array();
  for (const DeviceInfo& device : survey.devices) {
    ordered_json entry;
    entry["name"] = device.name;
    entry["transport"] = transport_name(device.transport);
    entry["ports"] = ordered_json::array();
    for (const PortInfo& port : device.ports) entry["ports"].push_back(port_json(device, port));
    out["devices"].push_back(std::move(entry));
  }
  out["reason"] = survey.devices.empty() ? ordered_json(survey.reason) : ordered_json(nullptr);
  out["advice"] = survey.advice;
  out["locked_bytes_max"] =
      survey.locked_bytes_max ? ordered_json(*survey.locked_bytes_max) : ordered_json(nullptr);
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace recua::cli
