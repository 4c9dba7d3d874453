#pragma once
/// A worker's requests for chunks, as messages to its coordinator.

#include <functional>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/weights_fetch.h"
#include "net/clock.h"
#include "rpc/channel.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

/// Sends a request to the coordinator and gives its reply, never an ErrorReply.
using CallCoordinator = std::function<boost::asio::awaitable<Result<wire::ControlMessage>>(
    wire::ControlMessage request, net::Duration timeout)>;

/// pushes: the coordinator knows how to push chunks on a channel.
ChunkSource make_chunk_source(rpc::ChannelId id, const CallCoordinator& call, bool pushes);

}  // namespace recua::cluster
