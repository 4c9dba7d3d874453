// Frames and the messages in them: what any peer may send before and after the handshake.
#include <cstddef>
#include <cstdint>
#include <span>

#include "rpc/frame.h"
#include "rpc/handshake_wire.h"
#include "rpc/recua.pb.h"
#include "rpc/wire_error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace recua::rpc;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  if (bytes.size() < kFrameHeaderBytes) return 0;
  const auto header = decode_frame_header(bytes.first<kFrameHeaderBytes>(), kFrameBytesMax);
  const auto payload = bytes.subspan(kFrameHeaderBytes);
  const FrameKind kind = header.ok() ? header->kind : FrameKind::kRequest;
  const Frame frame{.kind = kind, .payload = {payload.begin(), payload.end()}};
  if (kind == FrameKind::kHello) {
    recua::wire::Hello hello;
    if (!parse_payload(frame, "peer", hello).ok()) return 0;
    static_cast<void>(from_wire(hello, "peer").ok());
    static_cast<void>(from_wire(hello.channel(), "peer").ok());
  } else if (kind == FrameKind::kWelcome) {
    recua::wire::Welcome welcome;
    if (!parse_payload(frame, "peer", welcome).ok()) return 0;
    static_cast<void>(from_wire(welcome, "peer").ok());
    static_cast<void>(from_wire(welcome.ring(), "peer").ok());
  } else {
    recua::wire::ControlMessage message;
    if (!parse_payload(frame, "peer", message).ok()) return 0;
    static_cast<void>(wire_text(message.error().message(), kErrorTextBytesMax));
  }
  return 0;
}
