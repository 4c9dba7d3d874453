#include "rpc/frame.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <google/protobuf/message_lite.h>
#include <google/protobuf/stubs/logging.h>

#include "base/bytes.h"
#include "base/log.h"

namespace recua::rpc {
namespace {

constexpr std::array<char, 4> kMagic{'R', 'C', 'U', 'A'};
constexpr std::size_t kPieceBytes =
    256 * 1024;  // Read at once, and most memory ahead of the bytes.

Error bad_header(std::string_view field, std::size_t offset, std::string_view why) {
  return Error{ErrorCode::kProtocol,
               fmt::format("broken frame header: {} at byte {} {}", field, offset, why)};
}

}  // namespace

void quiet_protobuf() {
  static const bool kDone = [] {
    google::protobuf::SetLogHandler(
        [](google::protobuf::LogLevel, const char*, int, const std::string& line) {
          log_debug("protobuf: {}", line);
        });
    return true;
  }();
  static_cast<void>(kDone);
}

std::array<std::byte, kFrameHeaderBytes> encode_frame_header(const FrameHeader& header) {
  ByteWriter writer;
  writer.write_bytes(as_bytes({kMagic.data(), kMagic.size()}));
  writer.write(header.payload_bytes);
  writer.write(static_cast<std::uint16_t>(header.kind));
  writer.write_zeros(6);
  std::array<std::byte, kFrameHeaderBytes> out{};
  RECUA_CHECK(writer.size() == out.size());
  std::copy(writer.bytes().begin(), writer.bytes().end(), out.begin());
  return out;
}

Result<FrameHeader> decode_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes,
                                        std::uint32_t payload_bytes_max) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("this is no recua frame but {}", describe_foreign_bytes(bytes))};
  }
  ByteReader reader(bytes.subspan<4>());
  const std::uint32_t payload_bytes = *reader.read<std::uint32_t>();
  const std::uint16_t kind = *reader.read<std::uint16_t>();
  const std::uint16_t reserved_low = *reader.read<std::uint16_t>();
  const std::uint32_t reserved_high = *reader.read<std::uint32_t>();
  if (payload_bytes > payload_bytes_max) {
    return bad_header("payload_bytes", 4,
                      fmt::format("is {}, at most {} here", payload_bytes, payload_bytes_max));
  }
  if (kind == 0) return bad_header("kind", 8, "is 0, must be 1 or more");
  if (reserved_low != 0 || reserved_high != 0) return bad_header("reserved", 10, "must be 0");
  return FrameHeader{.kind = static_cast<FrameKind>(kind), .payload_bytes = payload_bytes};
}

std::string describe_foreign_bytes(std::span<const std::byte> bytes) {
  const std::string_view text = as_text(bytes);
  for (const std::string_view method : {"GET ", "POST ", "PUT ", "HEAD ", "OPTIONS ", "DELETE "}) {
    if (text.starts_with(method)) return "an HTTP request";
  }
  if (text.starts_with("HTTP/")) return "an HTTP answer";
  if (text.starts_with("SSH-")) return "SSH";
  if (!bytes.empty() && bytes.front() == std::byte{0x16}) return "TLS";
  std::string out = "bytes that begin";
  for (const std::byte byte : bytes.first(std::min<std::size_t>(bytes.size(), 8)))
    out += fmt::format(" {:02x}", static_cast<unsigned>(byte));
  return out;
}

Result<std::vector<std::byte>> encode_frame(FrameKind kind,
                                            const google::protobuf::MessageLite& message,
                                            std::uint32_t payload_bytes_max) {
  const std::size_t payload_bytes = message.ByteSizeLong();
  if (payload_bytes > payload_bytes_max) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a {} of {} bytes does not fit into a frame of {}",
                             message.GetTypeName(), payload_bytes, payload_bytes_max)};
  }
  std::vector<std::byte> out(kFrameHeaderBytes + payload_bytes);
  const auto header = encode_frame_header(
      {.kind = kind, .payload_bytes = static_cast<std::uint32_t>(payload_bytes)});
  std::copy(header.begin(), header.end(), out.begin());
  RECUA_CHECK(
      message.SerializeToArray(out.data() + kFrameHeaderBytes, static_cast<int>(payload_bytes)));
  return out;
}

net::asio::awaitable<Result<Frame>> read_frame(net::Connection& connection,
                                               std::uint32_t payload_bytes_max,
                                               std::function<void()> on_progress) {
  const std::string peer = connection.peer();
  std::array<std::byte, kFrameHeaderBytes> header_bytes;
  const std::span<std::byte> header_span(header_bytes);
  RECUA_CO_RETURN_IF_ERROR(co_await connection.read(header_span));
  if (on_progress) on_progress();
  Result<FrameHeader> header = decode_frame_header(header_bytes, payload_bytes_max);
  if (!header.ok()) co_return std::move(header).error().within(peer);

  Frame frame{.kind = header->kind, .payload = {}};
  while (frame.payload.size() < header->payload_bytes) {
    const std::size_t n_before = frame.payload.size();
    const std::size_t n = std::min(header->payload_bytes - n_before, kPieceBytes);
    frame.payload.resize(n_before + n);
    const std::span<std::byte> piece = std::span(frame.payload).subspan(n_before);
    Result<void> read = co_await connection.read(piece);
    if (!read.ok()) {
      co_return std::move(read).error().within(fmt::format(
          "inside a frame, after {} of {} payload bytes", n_before, header->payload_bytes));
    }
    if (on_progress) on_progress();
  }
  co_return frame;
}

net::asio::awaitable<Result<void>> write_frame(net::Connection& connection, FrameKind kind,
                                               const google::protobuf::MessageLite& message,
                                               std::uint32_t payload_bytes_max) {
  RECUA_CO_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes,
                            encode_frame(kind, message, payload_bytes_max));
  const std::span<const std::byte> span(bytes);
  Result<void> written = co_await connection.write(span);
  co_return written;
}

Result<void> parse_payload(const Frame& frame, const std::string& peer,
                           google::protobuf::MessageLite& message) {
  quiet_protobuf();
  if (message.ParseFromArray(frame.payload.data(), static_cast<int>(frame.payload.size())))
    return ok();
  return Error{ErrorCode::kProtocol, fmt::format("{}: {} bytes are no {}", peer,
                                                 frame.payload.size(), message.GetTypeName())};
}

}  // namespace recua::rpc
