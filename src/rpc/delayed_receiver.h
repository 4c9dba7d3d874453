#pragma once
/// A receiver behind a slower link than it has: each message is handed out some time after it came.
/// For measurements and tests, where the system cannot delay packets.
///
/// The time counts from when poll() found the message, so poll often: a thread that comes back from
/// other work waits the whole time, where a slow link would have worked meanwhile. Bandwidth is not
/// limited, order is kept, and a message that waits holds its slot, as one that is under way would.
/// A poll at a later time hands out all that is due.
///
/// Threads: one at a time, as the receiver inside.

#include <memory>

#include "net/connection.h"
#include "rpc/channel.h"

namespace recua::rpc {

/// env: of the receiver's loop; its clock tells the time. transport() becomes "tcp, delayed by 50
/// us".
std::unique_ptr<ChannelReceiver> make_delayed_receiver(std::unique_ptr<ChannelReceiver> receiver,
                                                       net::Env env, net::Duration delay);

}  // namespace recua::rpc
