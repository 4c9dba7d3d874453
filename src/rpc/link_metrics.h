#pragma once
/// What links did, for people and for monitoring: one end of a link with its counters, and the same
/// as lines of Prometheus' text format.
/// Source: Prometheus, "Exposition formats", text format 0.0.4.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "rpc/channel.h"

namespace recua::rpc {

/// One end of a link. Both ends count, each for itself.
struct LinkStats {
  std::string from = {};  // Who sends: "coordinator", "box1:7500".
  std::string to = {};
  std::string transport = {};  // As ChannelSender::transport() says it: "rdma mlx5_0/1 gid 3 ...".
  std::string carries = "steps";  // Or "weights", or "exchanges" between ranks.
  bool sends = true;              // Whether these are the sender's counters, or the receiver's.
  ChannelCounters counters = {};
};

/// A counter by name, in the order in which they are shown.
struct CounterField {
  std::string_view name;  // "payload_copies"
  std::string_view help;  // A sentence for a reader of /metrics.
  std::uint64_t ChannelCounters::* value;
};
std::span<const CounterField> counter_fields();

/// The kind of transport alone: "rdma", "shared memory", "tcp".
std::string transport_kind(std::string_view transport);

/// recua_link_<counter>_total{link="a->b",carries="steps",end="sender",transport="rdma"} lines,
/// each counter with its HELP and TYPE once. Label values are escaped.
std::string prometheus_text(std::span<const LinkStats> links);

}  // namespace recua::rpc
