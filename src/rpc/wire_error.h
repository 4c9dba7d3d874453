#pragma once
/// Errors as they cross the wire. A code that this program does not know becomes kUnavailable.

#include <string>
#include <string_view>

#include "base/result.h"
#include "rpc/recua.pb.h"

namespace recua::rpc {

wire::ErrorCode to_wire(ErrorCode code);
ErrorCode from_wire(wire::ErrorCode code);

/// A reply that says no.
wire::ControlMessage error_reply(const Error& error);
/// A foreign sentence that is safe to log: valid UTF-8, at most bytes_max bytes, control characters
/// replaced by '?'.
std::string wire_text(std::string_view text, std::size_t bytes_max);

/// A peer's sentence, cut to a sane length and free of control characters, with its name in front.
Error from_peer(const std::string& peer, wire::ErrorCode code, const std::string& message);

}  // namespace recua::rpc
