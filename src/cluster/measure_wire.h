#pragma once
/// Between cluster/measuring.h and the messages of rpc/recua.proto.
///
/// From the wire: every enum, count and figure is checked; kProtocol names the field.

#include <vector>

#include "base/result.h"
#include "cluster/measuring.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

wire::Transport to_wire(LinkTransport transport);

void to_wire(const SpeedRequest& request, wire::MeasureSpeed& out);
Result<SpeedRequest> from_wire(const wire::MeasureSpeed& message);

void to_wire(const MachineSpeed& speed, wire::SpeedMeasured& out);
/// Types: those of the request, in its order. macs_per_second is the first one's.
Result<MachineSpeed> from_wire(const wire::SpeedMeasured& message, const SpeedRequest& request);

struct LinkRequest {
  net::Endpoint peer;
  std::vector<LinkTransport> transports;  // At least one.
};
void to_wire(const LinkRequest& request, wire::MeasureLink& out);
Result<LinkRequest> from_wire(const wire::MeasureLink& message);

void to_wire(const LinkSpec& link, wire::LinkMeasured& out);
/// message_seconds is what is typical of the transport.
Result<LinkSpec> from_wire(const wire::LinkMeasured& message);

}  // namespace recua::cluster
