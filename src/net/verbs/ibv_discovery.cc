// What is on a device: ports, and the addresses in their GID tables.
#include <algorithm>
#include <array>
#include <bit>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <vector>

#include <fmt/format.h>

#include "net/verbs/ibv_objects.h"

namespace recua::net::verbs {
namespace {

constexpr std::size_t kMappedPrefixBytes = 12;  // ::ffff: in front of an IPv4 address.
constexpr int kMappedPrefixBits = 96;

template <std::size_t kBytes>
int count_ones(const void* mask) {
  std::array<std::uint8_t, kBytes> bytes;
  std::memcpy(bytes.data(), mask, kBytes);
  int n = 0;
  for (const std::uint8_t byte : bytes) n += std::popcount(byte);
  return n;
}

/// An address of a network interface, as the GID it would have.
struct InterfaceAddress {
  std::string interface;
  Gid gid{};
  std::uint8_t prefix_length = 0;
};

/// Nothing when the kernel does not tell: prefixes are only a help for pairing ports.
std::vector<InterfaceAddress> interface_addresses() {
  std::vector<InterfaceAddress> out;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return out;
  const std::unique_ptr<ifaddrs, decltype([](ifaddrs* l) { freeifaddrs(l); })> owner(list);
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_netmask == nullptr) continue;
    InterfaceAddress address{.interface = entry->ifa_name};
    int bits = 0;
    if (entry->ifa_addr->sa_family == AF_INET) {
      sockaddr_in ip{};
      sockaddr_in mask{};
      std::memcpy(&ip, entry->ifa_addr, sizeof ip);
      std::memcpy(&mask, entry->ifa_netmask, sizeof mask);
      address.gid[10] = address.gid[11] = std::byte{0xff};
      std::memcpy(address.gid.data() + kMappedPrefixBytes, &ip.sin_addr, sizeof ip.sin_addr);
      bits = kMappedPrefixBits + count_ones<sizeof mask.sin_addr>(&mask.sin_addr);
    } else if (entry->ifa_addr->sa_family == AF_INET6) {
      sockaddr_in6 ip{};
      sockaddr_in6 mask{};
      std::memcpy(&ip, entry->ifa_addr, sizeof ip);
      std::memcpy(&mask, entry->ifa_netmask, sizeof mask);
      std::memcpy(address.gid.data(), &ip.sin6_addr, sizeof ip.sin6_addr);
      bits = count_ones<sizeof mask.sin6_addr>(&mask.sin6_addr);
    } else {
      continue;
    }
    address.prefix_length = static_cast<std::uint8_t>(bits);
    out.push_back(std::move(address));
  }
  return out;
}

GidType to_gid_type(std::uint32_t type) {
  switch (type) {
    case IBV_GID_TYPE_ROCE_V1:
      return GidType::kRoceV1;
    case IBV_GID_TYPE_ROCE_V2:
      return GidType::kRoceV2;
    default:
      return GidType::kInfiniBand;
  }
}

PortState to_port_state(ibv_port_state state) {
  switch (state) {
    case IBV_PORT_DOWN:
      return PortState::kDown;
    case IBV_PORT_INIT:
      return PortState::kInit;
    case IBV_PORT_ARMED:
      return PortState::kArmed;
    case IBV_PORT_ACTIVE:
      return PortState::kActive;
    default:
      return PortState::kUnknown;
  }
}

/// active_speed is one bit per signalling rate of a lane, active_width one per number of lanes
/// (ibv_query_port(3)). Rates as they are called: a port of four EDR lanes is 100 Gbit/s.
std::uint64_t to_speed_mbit(std::uint8_t speed, std::uint8_t width) {
  std::uint64_t lane_mbit = 0;
  switch (speed) {
    case 1:
      lane_mbit = 2500;
      break;
    case 2:
      lane_mbit = 5000;
      break;
    case 4:
    case 8:
      lane_mbit = 10000;
      break;
    case 16:
      lane_mbit = 14000;
      break;
    case 32:
      lane_mbit = 25000;
      break;
    case 64:
      lane_mbit = 50000;
      break;
    case 128:
      lane_mbit = 100000;
      break;
    default:
      break;
  }
  switch (width) {
    case 1:
      return lane_mbit;
    case 2:
      return lane_mbit * 4;
    case 4:
      return lane_mbit * 8;
    case 8:
      return lane_mbit * 12;
    case 16:
      return lane_mbit * 2;
    default:
      return 0;
  }
}

/// All entries that are set, of all ports. libibverbs reads sysfs itself where the kernel is too
/// old for the query.
Result<std::vector<ibv_gid_entry>> read_gids(ibv_context* context, std::size_t n_max) {
  std::vector<ibv_gid_entry> entries(n_max);
  if (n_max == 0) return entries;
  const ssize_t n = ibv_query_gid_table(context, entries.data(), entries.size(), 0);
  if (n < 0) {
    return device_error(ibv_get_device_name(context->device), "ibv_query_gid_table",
                        static_cast<int>(-n));
  }
  entries.resize(static_cast<std::size_t>(n));
  return entries;
}

GidEntry to_gid_entry(const ibv_gid_entry& entry, const std::vector<InterfaceAddress>& addresses) {
  GidEntry out;
  out.index = entry.gid_index;
  out.type = to_gid_type(entry.gid_type);
  std::memcpy(out.gid.data(), entry.gid.raw, out.gid.size());
  std::array<char, IF_NAMESIZE> name{};
  if (entry.ndev_ifindex != 0 && if_indextoname(entry.ndev_ifindex, name.data()) != nullptr)
    out.interface = name.data();
  for (const InterfaceAddress& address : addresses) {
    if (address.gid != out.gid) continue;
    if (!out.interface.empty() && address.interface != out.interface) continue;
    out.prefix_length = address.prefix_length;
    break;
  }
  return out;
}

Result<PortInfo> read_port(ibv_context* context, std::uint8_t number, std::size_t* n_gids) {
  ibv_port_attr attributes{};
  if (const int error = ibv_query_port(context, number, &attributes); error != 0)
    return device_error(ibv_get_device_name(context->device), "ibv_query_port", error);
  PortInfo port;
  port.number = number;
  port.state = to_port_state(attributes.state);
  port.speed_mbit = to_speed_mbit(attributes.active_speed, attributes.active_width);
  port.lid = attributes.lid;
  port.message_bytes_max = attributes.max_msg_sz;
  if (attributes.link_layer == IBV_LINK_LAYER_ETHERNET) {
    port.link_layer = LinkLayer::kEthernet;
  } else if (attributes.link_layer == IBV_LINK_LAYER_INFINIBAND) {
    port.link_layer = LinkLayer::kInfiniBand;
  }
  const int mtu = attributes.active_mtu;  // 1 stands for 256, 5 for 4096.
  if (mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096) port.mtu_bytes = 128U << mtu;
  *n_gids = static_cast<std::size_t>(std::max(attributes.gid_tbl_len, 0));
  return port;
}

}  // namespace

Result<PortInfo> describe_port(ibv_context* context, std::uint8_t number) {
  // The kernel hands out the addresses of all ports at once, so one costs as much as all.
  RECUA_ASSIGN_OR_RETURN(DeviceInfo device, describe_device(context, nullptr));
  if (number < 1 || number > device.ports.size()) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("{} has no port {}, only 1 to {}", device.name, number, device.ports.size())};
  }
  return std::move(device.ports[number - 1U]);
}

Result<DeviceInfo> describe_device(ibv_context* context, std::uint32_t* completions_max) {
  ibv_device_attr attributes{};
  const char* const name = ibv_get_device_name(context->device);
  if (const int error = ibv_query_device(context, &attributes); error != 0)
    return device_error(name, "ibv_query_device", error);
  DeviceInfo device;
  device.name = name;
  device.sge_max = static_cast<std::uint32_t>(std::max(attributes.max_sge, 1));
  device.send_depth_max = static_cast<std::uint32_t>(std::max(attributes.max_qp_wr, 1));
  if (completions_max != nullptr)
    *completions_max = static_cast<std::uint32_t>(std::max(attributes.max_cqe, 1));
  if (context->device->transport_type == IBV_TRANSPORT_IB) {
    device.transport = Transport::kInfiniBand;
  } else if (context->device->transport_type == IBV_TRANSPORT_IWARP) {
    device.transport = Transport::kIwarp;
  }

  std::size_t n_gids_max = 0;
  for (unsigned number = 1; number <= attributes.phys_port_cnt; ++number) {
    std::size_t n_gids = 0;
    RECUA_ASSIGN_OR_RETURN(PortInfo port,
                           read_port(context, static_cast<std::uint8_t>(number), &n_gids));
    n_gids_max += n_gids;
    device.ports.push_back(std::move(port));
  }
  RECUA_ASSIGN_OR_RETURN(const std::vector<ibv_gid_entry> gids, read_gids(context, n_gids_max));
  const std::vector<InterfaceAddress> addresses = interface_addresses();
  for (const ibv_gid_entry& entry : gids) {
    if (entry.port_num < 1 || entry.port_num > device.ports.size()) continue;
    device.ports[entry.port_num - 1].gids.push_back(to_gid_entry(entry, addresses));
  }
  return device;
}

}  // namespace recua::net::verbs
