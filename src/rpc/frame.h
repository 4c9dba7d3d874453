#pragma once
/// Frames: how control messages are cut out of a stream. docs/protocol.md, "Frames".
///
/// Errors: kProtocol (the bytes are no frame: says what they look like), kUnavailable (the stream
/// ended, says inside what), both naming the peer. Deadlines are the caller's (net/deadline.h).

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/connection.h"

namespace google::protobuf {
class MessageLite;
}

namespace recua::rpc {

enum class FrameKind : std::uint16_t {
  kHello = 1,
  kWelcome = 2,
  kReject = 3,
  kRequest = 4,
  kReply = 5,
  kNotice = 6,
  kPing = 7,
  kPong = 8,
};

inline constexpr std::size_t kFrameHeaderBytes = 16;
inline constexpr std::uint32_t kFrameBytesMax = 16u << 20;  // Payload, after the handshake.
inline constexpr std::uint32_t kHandshakeFrameBytesMax = 64u << 10;  // Payload, before its end.

struct FrameHeader {
  FrameKind kind = FrameKind::kHello;
  std::uint32_t payload_bytes = 0;
};

struct Frame {
  FrameKind kind = FrameKind::kHello;
  std::vector<std::byte> payload;
};

std::array<std::byte, kFrameHeaderBytes> encode_frame_header(const FrameHeader& header);
/// kProtocol: names the field, its offset, the value and what would be right.
Result<FrameHeader> decode_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes,
                                        std::uint32_t payload_bytes_max);

/// What bytes that are no recua frame probably are: "an HTTP request", "TLS", or the bytes in hex.
std::string describe_foreign_bytes(std::span<const std::byte> bytes);

/// A whole frame, ready to be written. kInvalidArgument: larger than payload_bytes_max.
Result<std::vector<std::byte>> encode_frame(FrameKind kind,
                                            const google::protobuf::MessageLite& message,
                                            std::uint32_t payload_bytes_max);

/// Reads one frame. Memory grows with what arrives, never with what the header promises.
/// on_progress is called after each piece, so that a large frame counts as a sign of life.
net::asio::awaitable<Result<Frame>> read_frame(net::Connection& connection,
                                               std::uint32_t payload_bytes_max,
                                               std::function<void()> on_progress = {});
net::asio::awaitable<Result<void>> write_frame(net::Connection& connection, FrameKind kind,
                                               const google::protobuf::MessageLite& message,
                                               std::uint32_t payload_bytes_max);

/// Parses a payload into message. kProtocol: names the peer and the message's type.
Result<void> parse_payload(const Frame& frame, const std::string& peer,
                           google::protobuf::MessageLite& message);

/// protobuf writes to standard error what it dislikes in a message, and any peer could fill a log
/// that way: from here on it goes to our debug log. Called before foreign bytes are parsed.
void quiet_protobuf();

}  // namespace recua::rpc
