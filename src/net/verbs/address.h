#pragma once
/// Addresses of RDMA ports: GIDs as text, which of them to use, which ports of two machines belong
/// together, and the address vector that reaches a peer. Pure functions.
/// Source: RoCEv2 annex A17 (GIDs are IP addresses), IB spec 12.7 (LIDs, GRH).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

/// "10.0.0.5" for an IPv4-mapped GID, else IPv6 text.
std::string to_string(const Gid& gid);
/// An IPv4 address becomes ::ffff:a.b.c.d; a zone ("%eth0") and brackets are dropped.
std::optional<Gid> parse_gid(std::string_view address);
bool is_ipv4(const Gid& gid);
bool is_link_local(const Gid& gid);
/// "RoCEv2", "RoCEv1", "InfiniBand"
std::string_view to_string(GidType type);

/// What the user asked for; empty: choose.
struct PortFilter {
  std::vector<std::string> devices;  // "mlx5_0" or "mlx5_0/1", in order of preference.
  std::optional<std::uint32_t> gid_index;
};

/// "mlx5_0,mlx5_1/2": comma-separated names with optional port numbers. kInvalidArgument.
Result<std::vector<std::string>> parse_device_list(std::string_view text);

/// One of our ports with the GID to use on it.
struct PortChoice {
  std::string device;
  Transport transport = Transport::kUnknown;
  PortInfo port;  // Without gids.
  GidEntry gid;
  friend bool operator==(const PortChoice& a, const PortChoice& b) {
    return a.device == b.device && a.port.number == b.port.number && a.gid.index == b.gid.index;
  }
};

/// Why a port is not usable, or nothing: state, link layer, no GID of a usable type.
std::optional<std::string> why_unusable(const DeviceInfo& device, const PortInfo& port);

/// The usable ports, best first: the port that has local_address (the connection's own) comes
/// first. The GID of each: local_address itself, else an IPv4 one, a global IPv6 one, a link-local
/// one, all RoCEv2 before RoCEv1. With a filter: its devices in its order, and its GID index.
/// kInvalidArgument: the filter names a device, port or GID index that is not there: says what is.
/// kUnavailable: no usable port: says why for each ("rxa/1: port is down").
Result<std::vector<PortChoice>> choose_ports(const std::vector<DeviceInfo>& devices,
                                             const PortFilter& filter,
                                             std::string_view local_address);

/// What one end tells the other about a port, before queue pairs exist.
struct PortAddress {
  std::string device;  // For log lines.
  std::uint8_t port = 1;
  LinkLayer link_layer = LinkLayer::kUnknown;
  Transport transport = Transport::kUnknown;
  std::uint16_t lid = 0;
  Gid gid{};
  GidType gid_type = GidType::kRoceV2;
  std::uint32_t gid_index = 0;  // For log lines.
  std::uint8_t prefix_length = 0;
  std::uint32_t mtu_bytes = 1024;
  std::uint64_t speed_mbit = 0;
};
PortAddress port_address(const PortChoice& choice);

struct PortPair {
  std::size_t local = 0;  // Index into each list.
  std::size_t remote = 0;
};
/// Which ports of both ends are connected with each other: each used once, same link layer and
/// transport, same network (the prefix of either side; link-local only with link-local), at most
/// pairs_max. The first of both lists (the connection's own addresses) are paired even across
/// networks when nothing else fits, since RoCEv2 is routed.
std::vector<PortPair> pair_ports(const std::vector<PortAddress>& local,
                                 const std::vector<PortAddress>& remote, std::size_t pairs_max);
/// Why pair_ports() found none: "the peer's mlx5_0/1 is InfiniBand, ours is Ethernet".
std::string why_no_pair(const std::vector<PortAddress>& local,
                        const std::vector<PortAddress>& remote);

/// RoCE: GRH always. InfiniBand: by LID, with a GRH when the subnet prefixes differ.
AddressVector make_address(const PortChoice& local, const PortAddress& remote);

/// "mlx5_0/1 gid 3 (RoCEv2 10.0.0.5)"
std::string describe(const PortAddress& port);

}  // namespace recua::net::verbs
