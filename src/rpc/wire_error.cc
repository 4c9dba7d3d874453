#include "rpc/wire_error.h"

#include <fmt/format.h>

#include "rpc/handshake_wire.h"

namespace recua::rpc {

wire::ErrorCode to_wire(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return wire::ERROR_INVALID_ARGUMENT;
    case ErrorCode::kNotFound:
      return wire::ERROR_NOT_FOUND;
    case ErrorCode::kCorrupt:
      return wire::ERROR_CORRUPT;
    case ErrorCode::kUnsupported:
      return wire::ERROR_UNSUPPORTED;
    case ErrorCode::kResourceExhausted:
      return wire::ERROR_RESOURCE_EXHAUSTED;
    case ErrorCode::kIo:
      return wire::ERROR_IO;
    case ErrorCode::kUnavailable:
      return wire::ERROR_UNAVAILABLE;
    case ErrorCode::kTimeout:
      return wire::ERROR_TIMEOUT;
    case ErrorCode::kProtocol:
      return wire::ERROR_PROTOCOL;
    case ErrorCode::kCachesLost:
      return wire::ERROR_CACHES_LOST;
    case ErrorCode::kCancelled:
      return wire::ERROR_CANCELLED;
  }
  return wire::ERROR_UNSPECIFIED;
}

ErrorCode from_wire(wire::ErrorCode code) {
  switch (code) {
    case wire::ERROR_INVALID_ARGUMENT:
      return ErrorCode::kInvalidArgument;
    case wire::ERROR_NOT_FOUND:
      return ErrorCode::kNotFound;
    case wire::ERROR_CORRUPT:
      return ErrorCode::kCorrupt;
    case wire::ERROR_UNSUPPORTED:
      return ErrorCode::kUnsupported;
    case wire::ERROR_RESOURCE_EXHAUSTED:
      return ErrorCode::kResourceExhausted;
    case wire::ERROR_IO:
      return ErrorCode::kIo;
    case wire::ERROR_TIMEOUT:
      return ErrorCode::kTimeout;
    case wire::ERROR_PROTOCOL:
      return ErrorCode::kProtocol;
    case wire::ERROR_CACHES_LOST:
      return ErrorCode::kCachesLost;
    case wire::ERROR_CANCELLED:
      return ErrorCode::kCancelled;
    case wire::ERROR_UNAVAILABLE:
    default:
      return ErrorCode::kUnavailable;
  }
}

wire::ControlMessage error_reply(const Error& error) {
  wire::ControlMessage reply;
  reply.mutable_error()->set_code(to_wire(error.code));
  reply.mutable_error()->set_message(wire_text(error.message, kErrorTextBytesMax));
  return reply;
}

Error from_peer(const std::string& peer, wire::ErrorCode code, const std::string& message) {
  const std::string text = wire_text(message, kErrorTextBytesMax);
  return Error{from_wire(code),
               fmt::format("{}: {}", peer, text.empty() ? "failed without saying why" : text)};
}

}  // namespace recua::rpc
