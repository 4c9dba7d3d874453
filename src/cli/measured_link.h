#pragma once
/// The link from here to a worker, measured for a plan.

#include <span>

#include "base/result.h"
#include "cli/link_flags.h"
#include "cluster/link_transport.h"
#include "cluster/machines.h"
#include "net/connection.h"

namespace recua::cli {

/// The link that recua would use among the transports that are allowed. Takes some tenths of a
/// second, on a loop of its own. Errors as cluster::probe_link(); kUnavailable: no transport works.
Result<cluster::LinkSpec> measure_link(const LinkSetup& setup, const net::Endpoint& worker,
                                       std::span<const cluster::LinkTransport> allowed,
                                       net::Duration connect_timeout);

}  // namespace recua::cli
