#include "rpc/handshake_wire.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

/// Length of the well-formed UTF-8 character at the start of text (RFC 3629, section 4), 0 for
/// none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t n = first >= 0xc2 && first <= 0xdf   ? 2
                        : first >= 0xe0 && first <= 0xef ? 3
                        : first >= 0xf0 && first <= 0xf4 ? 4
                                                         : 0;
  if (n == 0 || text.size() < n) return 0;
  for (std::size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  const bool surrogate = first == 0xed && byte(1) > 0x9f;
  const bool too_high = first == 0xf4 && byte(1) > 0x8f;
  return overlong || surrogate || too_high ? 0 : n;
}

Error bad_field(const std::string& peer, std::string_view field, std::string_view why) {
  return Error{ErrorCode::kProtocol, fmt::format("{} sent a wrong {}: {}", peer, field, why)};
}

Result<std::vector<RdmaPortInfo>> rdma_ports(const wire::Capabilities& capabilities,
                                             const std::string& peer, std::string_view kind) {
  const std::string field = fmt::format("{}.capabilities.rdma_devices", kind);
  if (capabilities.rdma_devices_size() > kRdmaPortsMax) {
    return bad_field(
        peer, field,
        fmt::format("{} entries, at most {}", capabilities.rdma_devices_size(), kRdmaPortsMax));
  }
  std::vector<RdmaPortInfo> out;
  for (const wire::RdmaDevice& device : capabilities.rdma_devices()) {
    if (device.gids_size() > kListItemsMax) {
      return bad_field(peer, field,
                       fmt::format("{} GIDs, at most {}", device.gids_size(), kListItemsMax));
    }
    RdmaPortInfo& port = out.emplace_back();
    port.device = wire_text(device.name(), kRdmaNameBytesMax);
    port.port = device.port();
    port.mtu_bytes = device.path_mtu_bytes();
    for (const std::string& bytes : device.gids()) {
      auto& gid = port.gids.emplace_back();
      if (bytes.size() != gid.size()) {
        return bad_field(peer, field,
                         fmt::format("a GID of {} bytes, must have {}", bytes.size(), gid.size()));
      }
      std::memcpy(gid.data(), bytes.data(), gid.size());
    }
  }
  return out;
}

template <class Message>
Result<PeerInfo> peer_info(const Message& message, const std::string& peer, std::string_view kind) {
  const wire::Capabilities& capabilities = message.capabilities();
  if (message.features_size() > kListItemsMax) {
    return bad_field(peer, fmt::format("{}.features", kind),
                     fmt::format("{} numbers, at most {}", message.features_size(), kListItemsMax));
  }
  if (capabilities.data_types_size() > kListItemsMax) {
    return bad_field(
        peer, fmt::format("{}.capabilities.data_types", kind),
        fmt::format("{} numbers, at most {}", capabilities.data_types_size(), kListItemsMax));
  }
  if (capabilities.shared_memory_host().size() > kSharedMemoryHostBytesMax) {
    return bad_field(peer, fmt::format("{}.capabilities.shared_memory_host", kind),
                     fmt::format("{} bytes, at most {}", capabilities.shared_memory_host().size(),
                                 kSharedMemoryHostBytesMax));
  }
  PeerInfo out;
  RECUA_ASSIGN_OR_RETURN(out.rdma_ports, rdma_ports(capabilities, peer, kind));
  out.name = wire_text(message.name(), kNameBytesMax);
  out.software_version = wire_text(message.software_version(), kNameBytesMax);
  out.protocol_version = message.protocol_version();
  out.features.assign(message.features().begin(), message.features().end());
  out.memory_free_bytes = capabilities.memory_free_bytes();
  out.memory_total_bytes = capabilities.memory_total_bytes();
  out.n_threads = capabilities.n_threads();
  out.data_types.assign(capabilities.data_types().begin(), capabilities.data_types().end());
  out.shared_memory_host = capabilities.shared_memory_host();
  return out;
}

}  // namespace

std::string wire_text(std::string_view text, std::size_t bytes_max) {
  std::string out;
  while (!text.empty()) {
    const std::size_t n = utf8_length(text);
    if (out.size() + std::max<std::size_t>(n, 1) > bytes_max) break;
    const auto first = static_cast<unsigned char>(text.front());
    if (n == 0 || first < 0x20 || first == 0x7f) {
      out += '?';
    } else {
      out.append(text.substr(0, n));
    }
    text.remove_prefix(std::max<std::size_t>(n, 1));
  }
  return out;
}

void to_wire(const PeerInfo& self, wire::Capabilities& out) {
  out.set_memory_free_bytes(self.memory_free_bytes);
  out.set_memory_total_bytes(self.memory_total_bytes);
  out.set_n_threads(self.n_threads);
  for (const std::uint32_t type : self.data_types) out.add_data_types(type);
  out.set_shared_memory_host(self.shared_memory_host);
  for (const RdmaPortInfo& port : self.rdma_ports) {
    if (out.rdma_devices_size() == kRdmaPortsMax) break;
    wire::RdmaDevice& device = *out.add_rdma_devices();
    device.set_name(wire_text(port.device, kRdmaNameBytesMax));
    device.set_port(port.port);
    device.set_path_mtu_bytes(port.mtu_bytes);
    for (const auto& gid : port.gids) {
      if (device.gids_size() == kGidsToldMax) break;
      device.add_gids(gid.data(), gid.size());
    }
  }
}

wire::Channel to_wire(const ChannelRequest& request) {
  wire::Channel out;
  out.set_session(request.id.session);
  out.set_epoch(request.id.epoch);
  out.set_number(request.number);
  const bool sends = request.direction == Direction::kConnectorSends;
  out.set_direction(sends ? wire::DIRECTION_CONNECTOR_SENDS : wire::DIRECTION_ACCEPTOR_SENDS);
  out.set_secret(request.secret.data(), request.secret.size());
  if (!sends) {
    out.mutable_ring()->set_n_slots(request.ring.n_slots);
    out.mutable_ring()->set_slot_bytes(request.ring.slot_bytes);
  }
  return out;
}

Result<PeerInfo> from_wire(const wire::Hello& hello, const std::string& peer) {
  return peer_info(hello, peer, "Hello");
}
Result<PeerInfo> from_wire(const wire::Welcome& welcome, const std::string& peer) {
  return peer_info(welcome, peer, "Welcome");
}

Result<ChannelRequest> from_wire(const wire::Channel& channel, const std::string& peer) {
  ChannelRequest out;
  out.id = ChannelId{.session = channel.session(), .epoch = channel.epoch()};
  out.number = channel.number();
  switch (channel.direction()) {
    case wire::DIRECTION_CONNECTOR_SENDS:
      out.direction = Direction::kConnectorSends;
      break;
    case wire::DIRECTION_ACCEPTOR_SENDS:
      out.direction = Direction::kAcceptorSends;
      break;
    default:
      return bad_field(peer, "Hello.channel.direction",
                       fmt::format("{}, must be 1 or 2", static_cast<int>(channel.direction())));
  }
  if (channel.secret().size() != out.secret.size()) {
    return bad_field(
        peer, "Hello.channel.secret",
        fmt::format("{} bytes, must be {}", channel.secret().size(), out.secret.size()));
  }
  std::memcpy(out.secret.data(), channel.secret().data(), out.secret.size());
  if (out.direction == Direction::kAcceptorSends) {
    RECUA_ASSIGN_OR_RETURN(out.ring, from_wire(channel.ring(), peer));
  }
  return out;
}

Result<RingShape> from_wire(const wire::Ring& ring, const std::string& peer) {
  const RingShape out{.n_slots = ring.n_slots(), .slot_bytes = ring.slot_bytes()};
  if (Result<void> valid = validate(out); !valid.ok())
    return bad_field(peer, "ring", valid.error().message);
  return out;
}

std::vector<std::uint32_t> common(const std::vector<std::uint32_t>& a,
                                  const std::vector<std::uint32_t>& b) {
  std::vector<std::uint32_t> out;
  for (const std::uint32_t number : a) {
    if (std::find(b.begin(), b.end(), number) != b.end()) out.push_back(number);
  }
  return out;
}

}  // namespace recua::rpc
