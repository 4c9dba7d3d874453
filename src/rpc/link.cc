#include "rpc/link.h"

#include "rpc/tcp_channel.h"

namespace recua::rpc {

std::unique_ptr<ChannelSender> make_link_sender(LinkContext,
                                                std::unique_ptr<net::Connection> connection,
                                                RingShape ring, std::vector<std::span<std::byte>>,
                                                std::span<const std::uint32_t>) {
  return make_tcp_sender(std::move(connection), ring);
}

Result<std::unique_ptr<ChannelReceiver>> make_link_receiver(
    LinkContext, std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
    RingMemory memory) {
  return make_tcp_receiver(std::move(connection), id, ring, memory.bytes);
}

}  // namespace recua::rpc
