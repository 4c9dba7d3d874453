#pragma once
/// The handshake's messages between our types and protobuf, with every field of a peer bounded.
/// For src/rpc only; docs/protocol.md, "Handshake" and "Limits".

#include <string>

#include "base/result.h"
#include "rpc/handshake.h"
#include "rpc/recua.pb.h"

namespace recua::rpc {

inline constexpr std::size_t kNameBytesMax = 256;
inline constexpr std::size_t kErrorTextBytesMax = 2048;
inline constexpr int kListItemsMax = 256;
inline constexpr std::size_t kSharedMemoryHostBytesMax = 64;
inline constexpr int kRdmaPortsMax = 64;
inline constexpr std::size_t kRdmaNameBytesMax = 64;
/// Told of each port, so that a Hello stays far below a frame of 64 KiB.
inline constexpr int kGidsToldMax = 32;

void to_wire(const PeerInfo& self, wire::Capabilities& out);
wire::Channel to_wire(const ChannelRequest& request);

/// kProtocol: names the peer, the message, the field and the bound.
Result<PeerInfo> from_wire(const wire::Hello& hello, const std::string& peer);
Result<PeerInfo> from_wire(const wire::Welcome& welcome, const std::string& peer);
Result<ChannelRequest> from_wire(const wire::Channel& channel, const std::string& peer);
Result<RingShape> from_wire(const wire::Ring& ring, const std::string& peer);

/// What both lists have, in the order of the first.
std::vector<std::uint32_t> common(const std::vector<std::uint32_t>& a,
                                  const std::vector<std::uint32_t>& b);

}  // namespace recua::rpc
