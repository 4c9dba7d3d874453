// Link records: what an authenticated peer may say about faster ways on a channel's connection.
#include <cstddef>
#include <cstdint>
#include <span>

#include "rpc/link_record.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

template <class Message>
Message parsed(std::span<const std::byte> payload) {
  Message message;
  static_cast<void>(parse_record(payload, "peer", message).ok());
  return message;
}

void take_offer(const wire::LinkOffer& offer) {
  for (const wire::LinkLane& lane : offer.lanes()) static_cast<void>(from_wire(lane).ok());
  static_cast<void>(wire_text(offer.no_rdma(), kReasonBytesMax));
}

void take_answer(const wire::LinkAnswer& answer) {
  for (const wire::AcceptedLane& each : answer.lanes())
    static_cast<void>(from_wire(each.lane()).ok());
  if (answer.has_shared_ring()) static_cast<void>(from_wire(answer.shared_ring()).ok());
  static_cast<void>(wire_text(answer.reason(), kReasonBytesMax));
}

}  // namespace
}  // namespace recua::rpc

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace recua::rpc;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  if (bytes.size() < kRecordHeaderBytes) return 0;
  const auto header = decode_record_header(bytes.first<kRecordHeaderBytes>());
  if (!header.ok() || header->payload_bytes > bytes.size() - kRecordHeaderBytes) return 0;
  const auto payload = bytes.subspan(kRecordHeaderBytes, header->payload_bytes);
  switch (header->kind) {
    case RecordKind::kOffer:
      take_offer(parsed<recua::wire::LinkOffer>(payload));
      break;
    case RecordKind::kAnswer:
      take_answer(parsed<recua::wire::LinkAnswer>(payload));
      break;
    case RecordKind::kReady:
      static_cast<void>(
          wire_text(parsed<recua::wire::LinkReady>(payload).error(), kReasonBytesMax));
      break;
    case RecordKind::kFence:
      static_cast<void>(
          wire_text(parsed<recua::wire::LinkFence>(payload).reason(), kReasonBytesMax));
      break;
    case RecordKind::kFenced:
      static_cast<void>(
          wire_text(parsed<recua::wire::LinkFenced>(payload).reason(), kReasonBytesMax));
      break;
  }
  return 0;
}
