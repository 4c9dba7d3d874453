#include "cluster/measure_wire.h"

#include <bit>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "cluster/wire.h"

namespace recua::cluster {
namespace {

/// Nothing that computes is beyond these: a figure that is came from a broken peer.
constexpr double kPerSecondMax = 1e18;
constexpr double kSecondsMax = 3600.0;
constexpr int kTransportsMax = 16;

Error out_of_range(const char* field, double value) {
  return {ErrorCode::kProtocol, fmt::format("{} is {}, out of range", field, value)};
}

Result<void> check_rate(const char* field, double value) {
  if (std::isfinite(value) && value > 0.0 && value <= kPerSecondMax) return ok();
  return out_of_range(field, value);
}

Result<void> check_seconds(const char* field, double value) {
  if (std::isfinite(value) && value >= 0.0 && value <= kSecondsMax) return ok();
  return out_of_range(field, value);
}

}  // namespace

wire::Transport to_wire(LinkTransport transport) {
  switch (transport) {
    case LinkTransport::kSharedMemory:
      return wire::TRANSPORT_SHARED_MEMORY;
    case LinkTransport::kRdma:
      return wire::TRANSPORT_RDMA;
    case LinkTransport::kTcp:
      break;
  }
  return wire::TRANSPORT_TCP;
}

namespace {

std::optional<LinkTransport> transport_from_wire(int transport) {
  for (const LinkTransport known : kAllLinkTransports) {
    if (to_wire(known) == transport) return known;
  }
  return std::nullopt;
}

}  // namespace

void to_wire(const SpeedRequest& request, wire::MeasureSpeed& out) {
  out.set_n_threads(request.n_threads);
  for (const quant::DataType type : request.types) out.add_types(static_cast<std::uint32_t>(type));
  out.set_width(request.width);
  out.set_again(request.again);
}

Result<SpeedRequest> from_wire(const wire::MeasureSpeed& message) {
  SpeedRequest out;
  out.n_threads = message.n_threads();
  const auto n_types = static_cast<std::size_t>(message.types_size());
  if (n_types == 0 || n_types > kMeasuredTypesMax) {
    return Error{ErrorCode::kProtocol, fmt::format("measure_speed.types has {} entries, need 1 to "
                                                   "{}",
                                                   n_types, kMeasuredTypesMax)};
  }
  for (const std::uint32_t number : message.types()) {
    const auto type = quant::data_type_from_number(number);
    if (!type) {
      return Error{
          ErrorCode::kUnsupported,
          fmt::format("measure_speed.types has {}, a type that is not known here", number)};
    }
    out.types.push_back(*type);
  }
  out.width = message.width();
  if (out.width < kMeasuredWidthMin || out.width > kMeasuredWidthMax ||
      !std::has_single_bit(out.width)) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("measure_speed.width is {}, need a power of two from {} to {}",
                             out.width, kMeasuredWidthMin, kMeasuredWidthMax)};
  }
  out.again = message.again();
  return out;
}

void to_wire(const MachineSpeed& speed, wire::SpeedMeasured& out) {
  out.set_bytes_per_second(speed.bytes_per_second);
  for (const TypeSpeed& type : speed.by_type) {
    wire::TypeSpeed& own = *out.add_types();
    own.set_type(static_cast<std::uint32_t>(type.type));
    own.set_macs_per_second(type.macs_per_second);
    own.set_decode_macs_per_second(type.decode_macs_per_second);
  }
  out.set_attention_macs_per_second(speed.attention_macs_per_second);
  out.set_attention_decode_macs_per_second(speed.attention_decode_macs_per_second);
  out.set_operator_seconds(speed.operator_seconds);
}

Result<MachineSpeed> from_wire(const wire::SpeedMeasured& message, const SpeedRequest& request) {
  MachineSpeed out;
  out.bytes_per_second = message.bytes_per_second();
  RECUA_RETURN_IF_ERROR(check_rate("speed_measured.bytes_per_second", out.bytes_per_second));
  if (static_cast<std::size_t>(message.types_size()) != request.types.size()) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("speed_measured.types has {} entries, {} were asked for",
                             message.types_size(), request.types.size())};
  }
  for (const wire::TypeSpeed& own : message.types()) {
    const quant::DataType type = request.types[out.by_type.size()];
    if (own.type() != static_cast<std::uint32_t>(type)) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("speed_measured.types has {} where {} was asked for", own.type(),
                               static_cast<std::uint32_t>(type))};
    }
    RECUA_RETURN_IF_ERROR(
        check_rate("speed_measured.types.macs_per_second", own.macs_per_second()));
    RECUA_RETURN_IF_ERROR(
        check_rate("speed_measured.types.decode_macs_per_second", own.decode_macs_per_second()));
    out.by_type.push_back({.type = type,
                           .macs_per_second = own.macs_per_second(),
                           .decode_macs_per_second = own.decode_macs_per_second()});
  }
  out.macs_per_second = out.by_type.front().macs_per_second;
  out.attention_macs_per_second = message.attention_macs_per_second();
  out.attention_decode_macs_per_second = message.attention_decode_macs_per_second();
  out.operator_seconds = message.operator_seconds();
  RECUA_RETURN_IF_ERROR(
      check_rate("speed_measured.attention_macs_per_second", out.attention_macs_per_second));
  RECUA_RETURN_IF_ERROR(check_rate("speed_measured.attention_decode_macs_per_second",
                                   out.attention_decode_macs_per_second));
  RECUA_RETURN_IF_ERROR(check_seconds("speed_measured.operator_seconds", out.operator_seconds));
  return out;
}

void to_wire(const LinkRequest& request, wire::MeasureLink& out) {
  out.set_host(request.peer.host);
  out.set_port(request.peer.port);
  for (const LinkTransport transport : request.transports) out.add_transports(to_wire(transport));
}

Result<LinkRequest> from_wire(const wire::MeasureLink& message) {
  LinkRequest out;
  RECUA_ASSIGN_OR_RETURN(out.peer,
                         endpoint_from_wire("measure_link", message.host(), message.port()));
  if (message.transports_size() > kTransportsMax) {
    return Error{ErrorCode::kProtocol, fmt::format("measure_link.transports has {} entries, need "
                                                   "at most {}",
                                                   message.transports_size(), kTransportsMax)};
  }
  for (const LinkTransport known : kAllLinkTransports) {  // Each once, in the order of preference.
    for (const int transport : message.transports()) {
      if (transport_from_wire(transport) != known) continue;
      out.transports.push_back(known);
      break;
    }
  }
  if (out.transports.empty()) {
    return Error{ErrorCode::kUnsupported, "measure_link.transports has none that is known here"};
  }
  return out;
}

void to_wire(const LinkSpec& link, wire::LinkMeasured& out) {
  out.set_transport(to_wire(link.transport));
  out.set_latency_seconds(link.latency_seconds);
  out.set_bytes_per_second(link.bytes_per_second);
}

Result<LinkSpec> from_wire(const wire::LinkMeasured& message) {
  const auto transport = transport_from_wire(message.transport());
  if (!transport) {
    return Error{ErrorCode::kProtocol, fmt::format("link_measured.transport is {}, not known here",
                                                   static_cast<int>(message.transport()))};
  }
  const LinkSpec out{.transport = *transport,
                     .latency_seconds = message.latency_seconds(),
                     .bytes_per_second = message.bytes_per_second(),
                     .message_seconds = typical_message_seconds(*transport)};
  RECUA_RETURN_IF_ERROR(check_seconds("link_measured.latency_seconds", out.latency_seconds));
  RECUA_RETURN_IF_ERROR(check_rate("link_measured.bytes_per_second", out.bytes_per_second));
  return out;
}

}  // namespace recua::cluster
