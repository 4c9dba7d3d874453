#pragma once
/// Reports and counters of links between our types and the messages of rpc/recua.proto. From the
/// wire: texts are cut and cleaned, counts bounded.

#include <cstdint>
#include <string>
#include <vector>

#include "rpc/channel.h"
#include "rpc/link_metrics.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

/// One end of a link and the number of its channel within the session.
struct SessionLink {
  std::uint32_t number = 0;
  rpc::LinkStats stats;
};

wire::LinkCounters to_wire(const SessionLink& link);
/// At most links_max of them; who sends more is not asked for the rest.
std::vector<SessionLink> from_wire(const wire::SessionClosed& closed, int links_max);

wire::LinkReport link_report_to_wire(const rpc::ChannelId& id, const rpc::LinkStats& link,
                                     std::uint32_t number, const std::string& text);

}  // namespace recua::cluster
