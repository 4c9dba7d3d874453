#pragma once
/// From real workers to the planner's ClusterShape: which figures were measured, by whom, and what
/// stands in for those that nobody has measured.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cluster/machines.h"

namespace recua::cluster {

/// A worker as its hello tells it.
struct OfferedWorker {
  std::string name;  // "b:7500".
  std::string host;  // Equal for workers of one host; empty: a host of its own.
  std::uint64_t memory_bytes = 0;
  std::uint32_t n_threads = 1;
};

/// Where figures come from, as far as somebody has measured them. Workers by their index.
class Measurements {
 public:
  Measurements() = default;
  Measurements(const Measurements&) = delete;
  Measurements& operator=(const Measurements&) = delete;
  virtual ~Measurements() = default;

  /// Of one worker, as if alone on its host.
  virtual std::optional<MachineSpeed> speed(std::size_t worker) = 0;
  /// Of n_threads threads on this host, together.
  virtual std::optional<MachineSpeed> host_speed(const std::string& host,
                                                 std::uint32_t n_threads) = 0;
  virtual std::optional<LinkSpec> coordinator_link(std::size_t worker) = 0;
  virtual std::optional<LinkSpec> link(std::size_t a, std::size_t b) = 0;
  /// Stands in for a worker's speed that nobody has measured.
  virtual MachineSpeed assumed_speed(std::size_t worker) = 0;
};

struct MeasuredCluster {
  ClusterShape shape = {};
  std::vector<std::string> notes = {};  // What was assumed. Sentences.
};

/// A link that nobody has measured is taken to be as slow as the slower one of its ends' links to
/// the coordinator; a link to the coordinator that failed, 50 us and 1 Gbit/s.
MeasuredCluster measured_cluster(std::span<const OfferedWorker> workers,
                                 Measurements& measurements);

}  // namespace recua::cluster
