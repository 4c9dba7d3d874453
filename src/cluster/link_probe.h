#pragma once
/// Measures the link to a running worker: how long a message takes and how many bytes go through,
/// over each transport that both ends have, and which of them links would use.
///
/// For each transport an echo session of its own is opened (echo_session.h), its links restricted
/// to that transport. A round trip is one message there and its rows back; half of it is reported,
/// since both ways are of the same kind. Bandwidth is measured with a window of messages that are
/// answered without rows. It polls as a coordinator does (poll_loop.h), on env.executor's loop, and
/// gives that loop its turn now and then.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/link_transport.h"
#include "net/connection.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "rpc/link.h"

namespace recua::cluster {

/// What a channel's transport() says it runs on.
LinkTransport transport_of(std::string_view description);
/// "the peer has no RDMA device" of "tcp, because the peer has no RDMA device"; may be empty.
std::string_view reason_of(std::string_view description);

/// Rows of one message of a measurement; the header comes on top.
inline constexpr std::uint32_t kProbeBytesMax = (std::uint32_t{8} << 20) - 64;
inline constexpr std::uint32_t kProbeWindow = 8;

struct ProbeOptions {
  net::Endpoint worker;
  std::vector<LinkTransport> transports = {LinkTransport::kSharedMemory, LinkTransport::kRdma,
                                           LinkTransport::kTcp};
  std::vector<std::uint32_t> sizes = {64, 1024, 8192, 65536, 1 << 20};  // Each 1 to kProbeBytesMax.
  std::uint32_t bandwidth_bytes = 1 << 20;
  net::Duration duration = std::chrono::milliseconds(500);  // Of each size.
  std::uint64_t samples_max = 1'000'000;                    // Of each size.
  const rpc::LinkPolicy* policy = nullptr;                  // What this end may use; null: TCP.
  std::string shared_memory_host;                           // Told to the worker, as what follows.
  std::vector<rpc::RdmaPortInfo> rdma_ports;
  net::Duration connect_timeout = std::chrono::seconds(10);
  rpc::ControlOptions control;
};

struct LatencyResult {
  std::uint32_t bytes = 0;
  std::uint64_t n_samples = 0;
  net::Duration p50{};  // Half of a round trip; so is p99.
  net::Duration p99{};
};

struct BandwidthResult {
  std::uint32_t bytes = 0;  // Of each message.
  std::uint32_t window = 0;
  std::uint64_t n_messages = 0;
  double bytes_per_second = 0.0;
};

struct TransportReport {
  LinkTransport transport = LinkTransport::kTcp;
  bool available = false;
  std::string description;  // "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096", when available.
  std::string reason;       // Why not, else.
  std::vector<LatencyResult> latency;
  std::optional<BandwidthResult> bandwidth;
};

struct LinkReport {
  std::string address;  // Of the worker, as it was given.
  std::string name;     // As it calls itself.
  std::string software_version;
  std::vector<TransportReport> transports;  // As asked for.
  LinkTransport chosen = LinkTransport::kTcp;
  std::string chosen_description;  // Empty when that link failed; the reason says how.
  std::string chosen_reason;
};

/// Called before each part: so many of so many are done, and what is measured next.
using ProbeProgress =
    std::function<void(std::size_t n_done, std::size_t n_total, const std::string& what)>;

/// kInvalidArgument: a size. kUnsupported: the worker is too old. kUnavailable, kTimeout: it cannot
/// be reached, or was lost. A transport that does not work is no error, but reported.
boost::asio::awaitable<Result<LinkReport>> probe_link(net::Env env, ProbeOptions options,
                                                      ProbeProgress progress);

/// The q-quantile (0 < q <= 1) by nearest rank; reorders. values is not empty.
net::Duration quantile(std::vector<net::Duration>& values, double q);

}  // namespace recua::cluster
