#pragma once
/// Link records: what the two ends of a channel say about faster ways, on the channel's own
/// connection, between its messages (credits). docs/protocol.md, "Links".
///
/// Framing, and conversion between protobuf and our types with every foreign field bounded.
/// Errors: kProtocol, naming the field and the bound.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/verbs/lane.h"
#include "rpc/link.pb.h"
#include "rpc/shm_path.h"

namespace recua::rpc {

enum class RecordKind : std::uint16_t {
  kOffer = 1,   // Sender to receiver.
  kAnswer = 2,  // Receiver to sender.
  kReady = 3,   // Sender to receiver.
  kFence = 4,   // Sender to receiver.
  kFenced = 5,  // Receiver to sender.
};

inline constexpr std::size_t kRecordHeaderBytes = 16;
inline constexpr std::size_t kRecordPayloadBytesMax = 16 * 1024;
inline constexpr int kRecordLanesMax = 8;
inline constexpr std::size_t kReasonBytesMax = 512;

struct RecordHeader {
  RecordKind kind = RecordKind::kOffer;
  std::uint32_t payload_bytes = 0;
};

/// Whether these first four bytes begin a record.
bool is_record(std::span<const std::byte> bytes);
Result<RecordHeader> decode_record_header(std::span<const std::byte, kRecordHeaderBytes> bytes);
std::vector<std::byte> encode_record(RecordKind kind, const google::protobuf::MessageLite& message);
/// peer: for the error's sentence.
Result<void> parse_record(std::span<const std::byte> payload, const std::string& peer,
                          google::protobuf::MessageLite& message);

void to_wire(const net::verbs::LaneAddress& lane, wire::LinkLane& out);
Result<net::verbs::LaneAddress> from_wire(const wire::LinkLane& lane);
void to_wire(const ShmAddress& address, wire::SharedRing& out);
Result<ShmAddress> from_wire(const wire::SharedRing& ring);

}  // namespace recua::rpc
