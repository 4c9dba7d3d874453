#include "rpc/link_record.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "base/bytes.h"
#include "rpc/frame.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

constexpr std::array<char, 4> kMagic{'R', 'C', 'L', 'R'};
constexpr std::size_t kDeviceNameBytesMax = 64;

Error bad_field(std::string_view field, std::string_view why) {
  return Error{ErrorCode::kProtocol, fmt::format("broken link record: {} {}", field, why)};
}

/// A number of the peer's as one of our enumerators.
template <class Enum>
Result<Enum> enumerator(std::string_view field, std::uint32_t value, Enum last) {
  if (value > static_cast<std::uint32_t>(last)) {
    return bad_field(field, fmt::format("is {}, at most {}", value, static_cast<int>(last)));
  }
  return static_cast<Enum>(value);
}

template <class Small>
Result<Small> narrow(std::string_view field, std::uint32_t value) {
  if (value > std::numeric_limits<Small>::max()) {
    return bad_field(field,
                     fmt::format("is {}, at most {}", value, std::numeric_limits<Small>::max()));
  }
  return static_cast<Small>(value);
}

}  // namespace

bool is_record(std::span<const std::byte> bytes) {
  return bytes.size() >= kMagic.size() &&
         std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

Result<RecordHeader> decode_record_header(std::span<const std::byte, kRecordHeaderBytes> bytes) {
  if (!is_record(bytes)) return bad_field("magic at byte 0", "must be 52434c52 (RCLR)");
  ByteReader reader(bytes.subspan<4>());
  const std::uint16_t kind = *reader.read<std::uint16_t>();
  const std::uint16_t reserved_low = *reader.read<std::uint16_t>();
  const std::uint32_t payload_bytes = *reader.read<std::uint32_t>();
  const std::uint32_t reserved_high = *reader.read<std::uint32_t>();
  if (payload_bytes > kRecordPayloadBytesMax) {
    return bad_field("payload_bytes at byte 8",
                     fmt::format("is {}, at most {}", payload_bytes, kRecordPayloadBytesMax));
  }
  if (kind < 1 || kind > 5) {
    return bad_field("kind at byte 4", fmt::format("is {}, must be 1 to 5", kind));
  }
  if (reserved_low != 0 || reserved_high != 0) return bad_field("reserved", "must be 0");
  return RecordHeader{.kind = static_cast<RecordKind>(kind), .payload_bytes = payload_bytes};
}

std::vector<std::byte> encode_record(RecordKind kind,
                                     const google::protobuf::MessageLite& message) {
  const std::size_t payload_bytes = message.ByteSizeLong();
  RECUA_CHECK(payload_bytes <= kRecordPayloadBytesMax);
  std::vector<std::byte> out(kRecordHeaderBytes + payload_bytes);  // Reserved bytes stay 0.
  const auto kind_number = static_cast<std::uint16_t>(kind);
  const auto size = static_cast<std::uint32_t>(payload_bytes);
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  std::memcpy(out.data() + 4, &kind_number, sizeof(kind_number));
  std::memcpy(out.data() + 8, &size, sizeof(size));
  RECUA_CHECK(
      message.SerializeToArray(out.data() + kRecordHeaderBytes, static_cast<int>(payload_bytes)));
  return out;
}

Result<void> parse_record(std::span<const std::byte> payload, const std::string& peer,
                          google::protobuf::MessageLite& message) {
  quiet_protobuf();
  if (message.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) return ok();
  return Error{ErrorCode::kProtocol,
               fmt::format("{}: {} bytes are no {}", peer, payload.size(), message.GetTypeName())};
}

void to_wire(const net::verbs::LaneAddress& lane, wire::LinkLane& out) {
  const net::verbs::PortAddress& port = lane.port;
  wire::LinkPort& wire_port = *out.mutable_port();
  wire_port.set_device(port.device);
  wire_port.set_port(port.port);
  wire_port.set_link_layer(static_cast<std::uint32_t>(port.link_layer));
  wire_port.set_transport(static_cast<std::uint32_t>(port.transport));
  wire_port.set_lid(port.lid);
  wire_port.set_gid(port.gid.data(), port.gid.size());
  wire_port.set_gid_type(static_cast<std::uint32_t>(port.gid_type));
  wire_port.set_gid_index(port.gid_index);
  wire_port.set_prefix_length(port.prefix_length);
  wire_port.set_mtu_bytes(port.mtu_bytes);
  wire_port.set_speed_mbit(port.speed_mbit);
  out.set_qp_number(lane.qp_number);
  out.set_psn(lane.psn);
  out.set_window_address(lane.window_address);
  out.set_window_rkey(lane.window_rkey);
  out.set_window_bytes(lane.window_bytes);
}

Result<net::verbs::LaneAddress> from_wire(const wire::LinkLane& lane) {
  using net::verbs::GidType;
  using net::verbs::LinkLayer;
  using net::verbs::Transport;
  const wire::LinkPort& in = lane.port();
  net::verbs::LaneAddress out;
  out.port.device = wire_text(in.device(), kDeviceNameBytesMax);
  RECUA_ASSIGN_OR_RETURN(out.port.port, narrow<std::uint8_t>("port.port", in.port()));
  RECUA_ASSIGN_OR_RETURN(out.port.link_layer,
                         enumerator("port.link_layer", in.link_layer(), LinkLayer::kInfiniBand));
  RECUA_ASSIGN_OR_RETURN(out.port.transport,
                         enumerator("port.transport", in.transport(), Transport::kIwarp));
  RECUA_ASSIGN_OR_RETURN(out.port.gid_type,
                         enumerator("port.gid_type", in.gid_type(), GidType::kRoceV2));
  RECUA_ASSIGN_OR_RETURN(out.port.lid, narrow<std::uint16_t>("port.lid", in.lid()));
  RECUA_ASSIGN_OR_RETURN(out.port.prefix_length,
                         narrow<std::uint8_t>("port.prefix_length", in.prefix_length()));
  if (in.gid().size() != out.port.gid.size()) {
    return bad_field("port.gid", fmt::format("has {} bytes, must be 16", in.gid().size()));
  }
  std::memcpy(out.port.gid.data(), in.gid().data(), out.port.gid.size());
  out.port.gid_index = in.gid_index();
  out.port.mtu_bytes = in.mtu_bytes();
  out.port.speed_mbit = in.speed_mbit();
  out.qp_number = lane.qp_number();
  out.psn = lane.psn();
  out.window_address = lane.window_address();
  out.window_rkey = lane.window_rkey();
  out.window_bytes = lane.window_bytes();
  return out;
}

void to_wire(const ShmAddress& address, wire::SharedRing& out) {
  out.set_pid(address.pid);
  out.set_ring_fd(address.ring_fd);
  out.set_ring_bytes(address.ring_bytes);
  out.set_control_fd(address.control_fd);
}

Result<ShmAddress> from_wire(const wire::SharedRing& ring) {
  if (ring.pid() <= 0) return bad_field("shared_ring.pid", fmt::format("is {}", ring.pid()));
  if (ring.ring_fd() < 0 || ring.control_fd() < 0) {
    return bad_field("shared_ring", "names descriptors below 0");
  }
  return ShmAddress{.pid = ring.pid(),
                    .ring_fd = ring.ring_fd(),
                    .ring_bytes = ring.ring_bytes(),
                    .control_fd = ring.control_fd()};
}

}  // namespace recua::rpc
