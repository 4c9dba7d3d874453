#include "collective/message.h"

#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "base/bytes.h"
#include "rpc/wire_error.h"

namespace recua::collective {
namespace {

/// In the place of an operation.
constexpr std::uint16_t kGivingUp = 0xffff;

Error bad_descriptor(std::string_view what) {
  return Error{ErrorCode::kProtocol,
               fmt::format("broken descriptor of a collective message: {}", what)};
}

}  // namespace

std::string_view to_string(Operation operation) {
  switch (operation) {
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kReduceScatter:
      return "reduce_scatter";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kBarrier:
      return "barrier";
  }
  return "?";
}

std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::kWhole:
      return "one-shot";
    case Stage::kScatter:
      return "scattering";
    case Stage::kGather:
      return "gathering";
  }
  return "?";
}

std::string to_string(const CallId& id) {
  std::string out(to_string(id.operation));
  if (id.operation == Operation::kBroadcast) out += fmt::format(" from rank {}", id.root);
  if (id.operation != Operation::kBarrier) out += fmt::format(" of {} values", id.n_values);
  out += fmt::format(" (call {}", id.number);
  if (id.operation == Operation::kAllReduce) out += fmt::format(", {}", to_string(id.stage));
  if (id.format != WireFormat::kF32) out += fmt::format(", as {}", to_string(id.format));
  return out + ")";
}

std::array<std::byte, kCallDescriptorBytes> encode(const CallId& id, std::uint64_t n_part) {
  // Whole words, as a message's header (rpc/tensor_header.cc).
  const std::uint64_t what = static_cast<std::uint64_t>(id.operation) |
                             static_cast<std::uint64_t>(id.stage) << 16U |
                             std::uint64_t{id.root} << 32U;
  return std::bit_cast<std::array<std::byte, kCallDescriptorBytes>>(
      std::array<std::uint64_t, 3>{what, id.n_values, n_part});
}

std::string encode(const GivingUp& giving_up) {
  std::string out(8, '\0');
  const auto code = static_cast<std::uint32_t>(giving_up.code);
  std::memcpy(out.data(), &kGivingUp, sizeof(kGivingUp));
  std::memcpy(out.data() + 4, &code, sizeof(code));
  return out + rpc::wire_text(giving_up.why, kGivingUpTextBytesMax);
}

bool is_giving_up(std::span<const std::byte> descriptor) {
  return ByteReader(descriptor).read<std::uint16_t>() == kGivingUp;
}

Result<Decoded> decode_descriptor(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  const auto operation = reader.read<std::uint16_t>();
  const auto stage = reader.read<std::uint16_t>();
  const auto root_or_code = reader.read<std::uint32_t>();
  if (!root_or_code) {
    return bad_descriptor(fmt::format("{} bytes, must be at least 8", bytes.size()));
  }
  Decoded out;
  if (is_giving_up(bytes)) {
    if (*stage != 0) return bad_descriptor(fmt::format("reserved at byte 2 is {}, not 0", *stage));
    if (bytes.size() > kGivingUpBytesMax) {
      return bad_descriptor(
          fmt::format("{} bytes, must be at most {}", bytes.size(), kGivingUpBytesMax));
    }
    const bool known = *root_or_code <= static_cast<std::uint32_t>(ErrorCode::kCancelled);
    out.giving_up = {
        .code = known ? static_cast<ErrorCode>(*root_or_code) : ErrorCode::kUnavailable,
        .why = rpc::wire_text(as_text(bytes.subspan(8)), kGivingUpTextBytesMax)};
    return out;
  }
  if (*operation < 1 || *operation > static_cast<std::uint16_t>(Operation::kBarrier)) {
    return bad_descriptor(
        fmt::format("operation at byte 0 is {}, must be 1 to 5 or 65535", *operation));
  }
  if (*stage > static_cast<std::uint16_t>(Stage::kGather)) {
    return bad_descriptor(fmt::format("stage at byte 2 is {}, must be 0 to 2", *stage));
  }
  if (bytes.size() != kCallDescriptorBytes) {
    return bad_descriptor(fmt::format("{} bytes, must be {}", bytes.size(), kCallDescriptorBytes));
  }
  out.call.id = {.operation = static_cast<Operation>(*operation),
                 .stage = static_cast<Stage>(*stage),
                 .root = *root_or_code,
                 .n_values = *reader.read<std::uint64_t>()};
  out.call.n_part = *reader.read<std::uint64_t>();
  return out;
}

}  // namespace recua::collective
