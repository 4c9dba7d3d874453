// What a peer asks a worker for that wants to measure the link to it.
#include <cstddef>
#include <cstdint>

#include "cluster/echo_session.h"
#include "rpc/recua.pb.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  recua::wire::OpenEcho message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto request = recua::cluster::EchoSession::parse(message);
  // What was let through is what a worker allocates.
  if (request.ok() &&
      request->ring_bytes() > recua::cluster::kEchoSlotsMax * recua::cluster::kEchoSlotBytesMax) {
    __builtin_trap();
  }
  return 0;
}
