#pragma once
/// The kinds of transport that a link between two processes may run on.

#include <cstdint>
#include <string_view>

namespace recua::cluster {

/// In the order in which links prefer them.
enum class LinkTransport : std::uint8_t { kSharedMemory, kRdma, kTcp };
inline constexpr LinkTransport kAllLinkTransports[] = {LinkTransport::kSharedMemory,
                                                       LinkTransport::kRdma, LinkTransport::kTcp};
/// "shared memory", "rdma", "tcp": the first words of ChannelSender::transport().
std::string_view to_string(LinkTransport transport);

}  // namespace recua::cluster
