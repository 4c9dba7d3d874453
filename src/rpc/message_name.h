#pragma once
/// What texts call a message between processes: its field's name in recua.proto. The lite runtime
/// of protobuf knows no names; with the full one, its library and the descriptors were 1.5 MB of
/// every process.

#include <string_view>

#include "rpc/recua.pb.h"

namespace recua::rpc {

std::string_view message_name(wire::ControlMessage::BodyCase body);

}  // namespace recua::rpc
