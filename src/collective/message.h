#pragma once
/// What collective calls say to each other: messages of kind kCollective on a group's channels.
/// docs/protocol.md, "Collectives".
///
/// TensorHeader: step is the number of the call, micro_batch the message's index within its part,
/// data_type the numbers' format, one row of numbers (none when the part is empty), last set on the
/// part's last message. The descriptor says which call this is, as its sender sees it, so that
/// ranks that disagree find out at the first message.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "collective/wire_format.h"

namespace recua::collective {

enum class Operation : std::uint16_t {
  kAllReduce = 1,
  kReduceScatter = 2,
  kAllGather = 3,
  kBroadcast = 4,
  kBarrier = 5,
};
[[nodiscard]] std::string_view to_string(Operation operation);

/// Which exchange of a call a message belongs to.
enum class Stage : std::uint16_t {
  kWhole = 0,    // Everybody's whole vector to everybody.
  kScatter = 1,  // To each rank its part, to be summed there.
  kGather = 2,   // The sender's own part to everybody.
};
[[nodiscard]] std::string_view to_string(Stage stage);

/// One exchange as all ranks must see it.
struct CallId {
  std::uint64_t number = 0;  // Of the group's calls, from 0. In the header.
  Operation operation = Operation::kBarrier;
  Stage stage = Stage::kWhole;
  WireFormat format = WireFormat::kF32;  // In the header.
  std::uint32_t root = 0;                // Of a broadcast.
  std::uint64_t n_values = 0;            // Of the whole call.

  friend bool operator==(const CallId&, const CallId&) = default;
};
/// "all_reduce of 4096 values (call 12, one-shot)"
[[nodiscard]] std::string to_string(const CallId& id);

/// The descriptor of a message with numbers.
struct CallDescriptor {
  CallId id;                 // But for number and format.
  std::uint64_t n_part = 0;  // Values that this sender has for this receiver in this exchange.
};
inline constexpr std::size_t kCallDescriptorBytes = 24;
std::array<std::byte, kCallDescriptorBytes> encode(const CallId& id, std::uint64_t n_part);

/// The descriptor of a message that says that its sender has given the group up.
struct GivingUp {
  ErrorCode code = ErrorCode::kUnavailable;
  std::string why;  // For people; at most kGivingUpTextBytesMax.
};
inline constexpr std::size_t kGivingUpTextBytesMax = 512;
inline constexpr std::size_t kGivingUpBytesMax = 8 + kGivingUpTextBytesMax;
std::string encode(const GivingUp& giving_up);

[[nodiscard]] bool is_giving_up(std::span<const std::byte> descriptor);

/// A descriptor as it came. kProtocol: names the field, its value and what would be right.
struct Decoded {
  CallDescriptor call;
  std::optional<GivingUp> giving_up;  // If set, there is no call.
};
Result<Decoded> decode_descriptor(std::span<const std::byte> bytes);

}  // namespace recua::collective
