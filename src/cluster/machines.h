#pragma once
/// The machines of a plan as the planner sees them: memory, speed, and the links between them.
/// Measured (machine_probe.h, link_probe.h) or described (cluster_file.h); plain numbers either
/// way.
///
/// Links are told per pair of groups, so that a thousand equal machines need one line: a group is a
/// set of machines with the same links. Real workers are a group each.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cluster/link_transport.h"
#include "collective/wire_format.h"
#include "quant/data_type.h"

namespace recua::cluster {

/// How fast products with weights of one type are. Multiply-accumulates per second, all threads.
struct TypeSpeed {
  quant::DataType type = quant::DataType::kF32;
  double macs_per_second = 0.0;         // Many tokens at a time.
  double decode_macs_per_second = 0.0;  // One token, weights streamed from memory.

  friend bool operator==(const TypeSpeed&, const TypeSpeed&) = default;
};

struct MachineSpeed {
  double bytes_per_second = 0.0;           // Memory, read in a stream by all threads.
  double macs_per_second = 0.0;            // For weight types that by_type does not have.
  std::vector<TypeSpeed> by_type = {};     // What was measured.
  double attention_macs_per_second = 0.0;  // 0: a quarter of macs_per_second.
  // With one token of each sequence, which shares what it reads with no other; 0: as with many.
  double attention_decode_macs_per_second = 0.0;
  double operator_seconds = 0.0;  // Fixed cost of an operator, as waking the threads.

  friend bool operator==(const MachineSpeed&, const MachineSpeed&) = default;
};

/// What workers on one host can do together; 0 or not there: no limit. Two one-thread workers on
/// two cores are each as fast as one alone only until they want the same memory.
struct HostLimits {
  double bytes_per_second = 0.0;
  double macs_per_second = 0.0;
  std::vector<TypeSpeed> by_type = {};
  double attention_macs_per_second = 0.0;
  double attention_decode_macs_per_second = 0.0;
};

inline constexpr std::uint32_t kOwnHost = 0xffffffff;

struct Machine {
  std::string name;                // For messages: "b:7500".
  std::uint32_t group = 0;         // Index of its links.
  std::uint32_t host = kOwnHost;   // Index into hosts, when it shares one.
  std::uint64_t memory_bytes = 0;  // What it may use.
  std::uint32_t n_threads = 0;     // 0: unknown.
  MachineSpeed speed = {};
};

/// One way of a link.
struct LinkSpec {
  LinkTransport transport = LinkTransport::kTcp;
  double latency_seconds = 0.0;   // One way, of a small message.
  double bytes_per_second = 0.0;  // Of large ones.
  double message_seconds = 0.0;   // What each message more to another peer costs its sender.

  friend bool operator==(const LinkSpec&, const LinkSpec&) = default;
  /// The card moves the bytes while the processor goes on; else the sender is busy meanwhile.
  [[nodiscard]] bool overlaps() const { return transport == LinkTransport::kRdma; }
};

/// What a message costs its sender on a transport, when nobody has measured it: a system call, a
/// post to a card, a few cache lines.
double typical_message_seconds(LinkTransport transport);

/// The one that recua would use: shared memory, else RDMA, else TCP, among those in allowed.
/// Empty: none of them.
std::optional<LinkSpec> choose_link(std::span<const LinkSpec> links,
                                    std::span<const LinkTransport> allowed = kAllLinkTransports);

struct ClusterShape {
  std::vector<Machine> machines;
  std::vector<HostLimits> hosts = {};
  std::uint32_t n_groups = 0;
  std::vector<LinkSpec> links = {};                            // [n_groups, n_groups], symmetric.
  std::vector<LinkSpec> coordinator_links = {};                // [n_groups]
  collective::WireFormat sums = collective::WireFormat::kF32;  // What ranks send each other.

  [[nodiscard]] const LinkSpec& link(std::uint32_t a, std::uint32_t b) const {
    return links[std::size_t{machines[a].group} * n_groups + machines[b].group];
  }
  [[nodiscard]] const LinkSpec& coordinator_link(std::uint32_t machine) const {
    return coordinator_links[machines[machine].group];
  }
  void set_link(std::uint32_t group_a, std::uint32_t group_b, const LinkSpec& spec) {
    links[std::size_t{group_a} * n_groups + group_b] = spec;
    links[std::size_t{group_b} * n_groups + group_a] = spec;
  }
};

/// Every machine a group of its own, all links alike.
ClusterShape cluster_of(std::vector<Machine> machines, const LinkSpec& link);

}  // namespace recua::cluster
