#include "net/verbs/address.h"

#include <algorithm>
#include <charconv>
#include <tuple>
#include <utility>

#include <boost/asio/ip/address.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace recua::net::verbs {
namespace {

constexpr std::uint32_t kGidIndexMax = 255;  // sgid_index is one byte (ibv_modify_qp(3)).

std::string port_name(const std::string& device, unsigned number) {
  return fmt::format("{}/{}", device, number);
}

std::string_view name(LinkLayer layer) {
  switch (layer) {
    case LinkLayer::kEthernet:
      return "Ethernet";
    case LinkLayer::kInfiniBand:
      return "InfiniBand";
    case LinkLayer::kUnknown:
      break;
  }
  return "of an unknown link layer";
}

/// Whether a GID of this type works on the port. iWARP connects by IP address, its GIDs are MACs.
bool is_usable(const DeviceInfo& device, const PortInfo& port, const GidEntry& entry) {
  if (entry.index > kGidIndexMax) return false;
  if (device.transport == Transport::kIwarp) return true;
  const bool is_roce = entry.type == GidType::kRoceV1 || entry.type == GidType::kRoceV2;
  return is_roce == (port.link_layer == LinkLayer::kEthernet);
}

/// Lower is better.
auto rank(const GidEntry& entry, const std::optional<Gid>& local) {
  const int kind = is_link_local(entry.gid) ? 2 : is_ipv4(entry.gid) ? 0 : 1;
  return std::tuple(entry.type == GidType::kRoceV1, local != entry.gid, kind, entry.index);
}

auto rank(const PortChoice& choice, const std::optional<Gid>& local) {
  const bool is_roce = choice.port.link_layer == LinkLayer::kEthernet;
  return std::tuple(local != choice.gid.gid, choice.gid.type == GidType::kRoceV1,
                    is_roce && is_link_local(choice.gid.gid), ~choice.port.speed_mbit);
}

std::string list_gids(const std::vector<GidEntry>& gids) {
  std::vector<std::string> names;
  for (const GidEntry& entry : gids)
    names.push_back(
        fmt::format("{} ({} {})", entry.index, to_string(entry.type), to_string(entry.gid)));
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

struct Candidate {
  const DeviceInfo* device = nullptr;
  const PortInfo* port = nullptr;
};

std::vector<Candidate> all_ports(const std::vector<DeviceInfo>& devices) {
  std::vector<Candidate> out;
  for (const DeviceInfo& device : devices)
    for (const PortInfo& port : device.ports) out.push_back({&device, &port});
  return out;
}

Error no_such_device(const std::vector<DeviceInfo>& devices, std::string_view wanted) {
  std::vector<std::string> names;
  for (const Candidate& candidate : all_ports(devices))
    names.push_back(port_name(candidate.device->name, candidate.port->number));
  return {ErrorCode::kInvalidArgument,
          fmt::format("there is no RDMA port \"{}\" here; there is: {}", wanted,
                      names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")))};
}

/// The ports that the filter names, in its order, each once.
Result<std::vector<Candidate>> filter_ports(const std::vector<DeviceInfo>& devices,
                                            const PortFilter& filter) {
  const std::vector<Candidate> all = all_ports(devices);
  if (filter.devices.empty()) return all;
  std::vector<Candidate> out;
  for (const std::string& wanted : filter.devices) {
    bool found = false;
    for (const Candidate& candidate : all) {
      if (wanted != candidate.device->name &&
          wanted != port_name(candidate.device->name, candidate.port->number)) {
        continue;
      }
      found = true;
      if (std::ranges::find(out, candidate.port, &Candidate::port) == out.end())
        out.push_back(candidate);
    }
    if (!found) return no_such_device(devices, wanted);
  }
  return out;
}

const GidEntry* choose_gid(const Candidate& candidate, const PortFilter& filter,
                           const std::optional<Gid>& local) {
  const GidEntry* best = nullptr;
  for (const GidEntry& entry : candidate.port->gids) {
    if (!is_usable(*candidate.device, *candidate.port, entry)) continue;
    if (filter.gid_index && entry.index != *filter.gid_index) continue;
    if (best == nullptr || rank(entry, local) < rank(*best, local)) best = &entry;
  }
  return best;
}

/// In bits; what the kernel did not tell is taken as the usual size of a network.
unsigned prefix_bits(std::uint8_t known, const Gid& gid) {
  if (known > 0) return std::min<unsigned>(known, 128);
  return is_ipv4(gid) ? 120 : 64;
}

bool same_bits(const Gid& a, const Gid& b, unsigned n_bits) {
  const unsigned n_bytes = n_bits / 8;
  if (!std::equal(a.begin(), a.begin() + n_bytes, b.begin())) return false;
  const unsigned rest = n_bits % 8;
  if (rest == 0) return true;
  const auto mask = static_cast<std::byte>(0xff << (8 - rest));
  return (a[n_bytes] & mask) == (b[n_bytes] & mask);
}

/// Why packets of one cannot reach the other whatever the network between them, or nothing.
std::optional<std::string> mismatch(const PortAddress& ours, const PortAddress& theirs) {
  const std::string their_name = port_name(theirs.device, theirs.port);
  if (ours.link_layer != theirs.link_layer) {
    return fmt::format("the peer's {} is {}, ours is {}", their_name, name(theirs.link_layer),
                       name(ours.link_layer));
  }
  if (ours.transport != theirs.transport) {
    const bool is_iwarp = theirs.transport == Transport::kIwarp;
    return fmt::format("the peer's {} {} iWARP, ours {}", their_name, is_iwarp ? "is" : "is not",
                       is_iwarp ? "is not" : "is");
  }
  if (ours.link_layer != LinkLayer::kEthernet || ours.transport == Transport::kIwarp)
    return std::nullopt;
  if (ours.gid_type != theirs.gid_type) {
    return fmt::format("the peer's {} speaks {}, ours {}", their_name, to_string(theirs.gid_type),
                       to_string(ours.gid_type));
  }
  if (is_ipv4(ours.gid) != is_ipv4(theirs.gid)) {
    return fmt::format("the peer's {} has the address {}, ours {}: not of the same IP version",
                       their_name, to_string(theirs.gid), to_string(ours.gid));
  }
  if (is_link_local(ours.gid) != is_link_local(theirs.gid)) {
    return fmt::format("the peer's {} has the address {}, ours {}: a link-local one is not routed",
                       their_name, to_string(theirs.gid), to_string(ours.gid));
  }
  return std::nullopt;
}

bool same_network(const PortAddress& a, const PortAddress& b) {
  if (a.transport == Transport::kIwarp) return false;  // MAC addresses do not tell.
  if (a.link_layer == LinkLayer::kInfiniBand) return same_bits(a.gid, b.gid, 64);
  return same_bits(a.gid, b.gid, prefix_bits(a.prefix_length, a.gid)) ||
         same_bits(a.gid, b.gid, prefix_bits(b.prefix_length, b.gid));
}

/// Neither RoCEv1, an Ethernet protocol, nor link-local addresses leave their network.
bool is_routed(const PortAddress& port) {
  if (port.transport == Transport::kIwarp || port.link_layer == LinkLayer::kInfiniBand) return true;
  return port.gid_type == GidType::kRoceV2 && !is_link_local(port.gid);
}

}  // namespace

std::string to_string(const Gid& gid) {
  asio::ip::address_v6::bytes_type bytes;
  for (std::size_t i = 0; i < gid.size(); ++i) bytes[i] = std::to_integer<unsigned char>(gid[i]);
  if (is_ipv4(gid)) return fmt::format("{}.{}.{}.{}", bytes[12], bytes[13], bytes[14], bytes[15]);
  return asio::ip::address_v6(bytes).to_string();
}

std::optional<Gid> parse_gid(std::string_view address) {
  if (address.starts_with('[')) {
    if (!address.ends_with(']')) return std::nullopt;
    address = address.substr(1, address.size() - 2);
  }
  address = address.substr(0, address.find('%'));
  boost::system::error_code error;
  const auto parsed = asio::ip::make_address(std::string(address), error);
  if (error) return std::nullopt;
  Gid gid{};
  if (parsed.is_v4()) {
    gid[10] = gid[11] = std::byte{0xff};
    const auto bytes = parsed.to_v4().to_bytes();
    for (std::size_t i = 0; i < bytes.size(); ++i) gid[12 + i] = static_cast<std::byte>(bytes[i]);
  } else {
    const auto bytes = parsed.to_v6().to_bytes();
    for (std::size_t i = 0; i < bytes.size(); ++i) gid[i] = static_cast<std::byte>(bytes[i]);
  }
  return gid;
}

bool is_ipv4(const Gid& gid) {
  return std::all_of(gid.begin(), gid.begin() + 10,
                     [](std::byte b) { return b == std::byte{0}; }) &&
         gid[10] == std::byte{0xff} && gid[11] == std::byte{0xff};
}

bool is_link_local(const Gid& gid) {
  if (is_ipv4(gid)) return gid[12] == std::byte{169} && gid[13] == std::byte{254};
  return gid[0] == std::byte{0xfe} && (gid[1] & std::byte{0xc0}) == std::byte{0x80};
}

std::string_view to_string(GidType type) {
  switch (type) {
    case GidType::kInfiniBand:
      return "InfiniBand";
    case GidType::kRoceV1:
      return "RoCEv1";
    case GidType::kRoceV2:
      return "RoCEv2";
  }
  return "unknown type";
}

Result<std::vector<std::string>> parse_device_list(std::string_view text) {
  const auto wrong = [&](std::string_view item) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("\"{}\" in \"{}\" is no RDMA device: give names as \"mlx5_0\" or, with "
                    "a port from 1 to 255, \"mlx5_0/1\", separated by commas",
                    item, text)};
  };
  std::vector<std::string> out;
  for (std::string_view rest = text;;) {
    const std::size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const std::size_t slash = item.find('/');
    const std::string_view device = item.substr(0, slash);
    const bool is_name = !device.empty() && std::ranges::all_of(device, [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
             c == '_' || c == '-' || c == '.';
    });
    if (!is_name) return wrong(item);
    if (slash != std::string_view::npos) {
      const std::string_view digits = item.substr(slash + 1);
      std::uint8_t port = 0;
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
      if (error != std::errc() || end != digits.data() + digits.size() || port == 0)
        return wrong(item);
      out.push_back(port_name(std::string(device), port));  // "01" is port 1.
    } else {
      out.emplace_back(device);
    }
    if (comma == std::string_view::npos) return out;
    rest.remove_prefix(comma + 1);
  }
}

std::optional<std::string> why_unusable(const DeviceInfo& device, const PortInfo& port) {
  switch (port.state) {
    case PortState::kActive:
      break;
    case PortState::kDown:
      return "port is down";
    case PortState::kInit:
      return "port is initializing: is a subnet manager running?";
    case PortState::kArmed:
      return "port is armed but not active";
    case PortState::kUnknown:
      return "port is in an unknown state";
  }
  if (device.transport == Transport::kUnknown)
    return "its transport is neither InfiniBand nor iWARP";
  if (port.link_layer == LinkLayer::kUnknown)
    return "its link layer is neither Ethernet nor InfiniBand";
  if (port.link_layer == LinkLayer::kInfiniBand && port.lid == 0)
    return "it has no LID: is a subnet manager running?";
  const bool has_gid = std::ranges::any_of(
      port.gids, [&](const GidEntry& entry) { return is_usable(device, port, entry); });
  if (has_gid) return std::nullopt;
  if (port.gids.empty()) return "it has no GID: has its network interface an address?";
  return fmt::format("it has no GID of a usable type, only {}", list_gids(port.gids));
}

Result<std::vector<PortChoice>> choose_ports(const std::vector<DeviceInfo>& devices,
                                             const PortFilter& filter,
                                             std::string_view local_address) {
  RECUA_ASSIGN_OR_RETURN(const std::vector<Candidate> candidates, filter_ports(devices, filter));
  const std::optional<Gid> local = parse_gid(local_address);
  std::vector<PortChoice> out;
  std::vector<std::string> reasons;
  bool lacks_index = false;
  for (const Candidate& candidate : candidates) {
    const std::string port_text = port_name(candidate.device->name, candidate.port->number);
    if (const auto why = why_unusable(*candidate.device, *candidate.port)) {
      reasons.push_back(fmt::format("{}: {}", port_text, *why));
      continue;
    }
    const GidEntry* gid = choose_gid(candidate, filter, local);
    if (gid == nullptr) {
      lacks_index = true;
      reasons.push_back(fmt::format("{} has no usable GID {}, it has {}", port_text,
                                    *filter.gid_index, list_gids(candidate.port->gids)));
      continue;
    }
    PortChoice choice{.device = candidate.device->name,
                      .transport = candidate.device->transport,
                      .port = *candidate.port,
                      .gid = *gid};
    choice.port.gids.clear();
    // Behind all that are as good.
    const auto place = filter.devices.empty()
                           ? std::ranges::upper_bound(out, rank(choice, local), {},
                                                      [&](const auto& c) { return rank(c, local); })
                           : out.end();
    out.insert(place, std::move(choice));
  }
  if (out.empty()) {
    if (candidates.empty()) return Error{ErrorCode::kUnavailable, "there is no RDMA device"};
    return Error{lacks_index ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable,
                 fmt::format("no usable RDMA port: {}", fmt::join(reasons, "; "))};
  }
  return out;
}

PortAddress port_address(const PortChoice& choice) {
  return {.device = choice.device,
          .port = choice.port.number,
          .link_layer = choice.port.link_layer,
          .transport = choice.transport,
          .lid = choice.port.lid,
          .gid = choice.gid.gid,
          .gid_type = choice.gid.type,
          .gid_index = choice.gid.index,
          .prefix_length = choice.gid.prefix_length,
          .mtu_bytes = choice.port.mtu_bytes,
          .speed_mbit = choice.port.speed_mbit};
}

std::vector<PortPair> pair_ports(const std::vector<PortAddress>& local,
                                 const std::vector<PortAddress>& remote, std::size_t pairs_max) {
  std::vector<PortPair> out;
  std::vector<bool> is_taken(remote.size(), false);
  for (std::size_t i = 0; i < local.size() && out.size() < pairs_max; ++i) {
    for (std::size_t j = 0; j < remote.size(); ++j) {
      if (is_taken[j] || mismatch(local[i], remote[j]) || !same_network(local[i], remote[j]))
        continue;
      out.push_back({.local = i, .remote = j});
      is_taken[j] = true;
      break;
    }
  }
  const bool may_route = out.empty() && pairs_max > 0 && !local.empty() && !remote.empty() &&
                         !mismatch(local[0], remote[0]) && is_routed(local[0]);
  if (may_route) out.push_back({});
  return out;
}

std::string why_no_pair(const std::vector<PortAddress>& local,
                        const std::vector<PortAddress>& remote) {
  if (local.empty()) return "there is no RDMA port here";
  if (remote.empty()) return "the peer has no RDMA port";
  if (auto why = mismatch(local[0], remote[0])) return std::move(*why);
  return fmt::format(
      "the peer's {} has the address {}, ours {}: not of one network, and {}",
      port_name(remote[0].device, remote[0].port), to_string(remote[0].gid),
      to_string(local[0].gid),
      is_link_local(local[0].gid) ? "link-local addresses are not routed" : "RoCEv1 is not routed");
}

AddressVector make_address(const PortChoice& local, const PortAddress& remote) {
  AddressVector out{.port = local.port.number, .is_global = true};
  if (local.port.link_layer == LinkLayer::kInfiniBand) {
    // Across subnets the packet goes to a router, whose LID is in the subnet manager's path record,
    // which nobody asks for here: with the peer's LID, that needs a LID unique over both subnets.
    out.lid = remote.lid;
    out.is_global = !same_bits(local.gid.gid, remote.gid, 64);
  }
  if (out.is_global) {
    out.gid = remote.gid;
    out.gid_index = static_cast<std::uint8_t>(local.gid.index);  // choose_ports() bounds it.
  }
  return out;
}

std::string describe(const PortAddress& port) {
  const std::string lid =
      port.link_layer == LinkLayer::kInfiniBand ? fmt::format("lid {} ", port.lid) : std::string();
  return fmt::format("{} {}gid {} ({} {})", port_name(port.device, port.port), lid, port.gid_index,
                     port.transport == Transport::kIwarp ? "iWARP" : to_string(port.gid_type),
                     to_string(port.gid));
}

}  // namespace recua::net::verbs
