#include "cli/measured_link.h"

#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "cli/run_loop.h"
#include "cluster/link_probe.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"

namespace recua::cli {
namespace {

// Of each size and transport: enough for a median.
constexpr net::Duration kLinkProbeTime = std::chrono::milliseconds(100);

}  // namespace

Result<cluster::LinkSpec> measure_link(const LinkSetup& setup, const net::Endpoint& worker,
                                       std::span<const cluster::LinkTransport> allowed,
                                       net::Duration connect_timeout) {
  boost::asio::io_context loop{1};
  net::RealClock clock;
  net::TcpNetwork network(loop.get_executor());
  const net::Env env = real_env(loop, clock, network);
  cluster::ProbeOptions options;
  options.worker = worker;
  options.transports.assign(allowed.begin(), allowed.end());
  options.sizes = {64};
  options.duration = kLinkProbeTime;
  options.policy = &setup.policy;
  options.shared_memory_host = setup.shared_memory_host;
  options.rdma_ports = setup.rdma_ports;
  options.connect_timeout = connect_timeout;
  RECUA_ASSIGN_OR_RETURN(
      const cluster::LinkReport report,
      run_on(loop, cluster::probe_link(env, std::move(options), [](auto, auto, auto&) {})));
  std::vector<cluster::LinkSpec> links;
  for (const cluster::TransportReport& transport : report.transports) {
    if (!transport.available || transport.latency.empty() || !transport.bandwidth) continue;
    links.push_back(
        {.transport = transport.transport,
         .latency_seconds = std::chrono::duration<double>(transport.latency.front().p50).count(),
         .bytes_per_second = transport.bandwidth->bytes_per_second,
         .message_seconds = cluster::typical_message_seconds(transport.transport)});
  }
  if (const auto link = cluster::choose_link(links)) return *link;
  return Error{ErrorCode::kUnavailable, "no transport works between the two"};
}

}  // namespace recua::cli
