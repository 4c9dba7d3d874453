#pragma once
/// What a coordinator knows of the links of its plan: their names, what they run on, and in the
/// end what they did. Channel i leads into worker i, from the coordinator or from a worker of the
/// layers before, the last one back to the coordinator. Channels between the ranks of a group have
/// numbers of their own, the same in every group. Channels for weights lead from the coordinator to
/// each worker that lacks some.
///
/// Both ends of a link report and count. The sender's line is shown, the receiver's is for
/// debugging, unless the sender is too old to report.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cluster/link_wire.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

class LinkBook {
 public:
  struct Worker {
    std::string name;
    bool reports = true;  // Knows links.
  };
  /// In the order of the layers; n_ranks of them after one another have their layers in common.
  void set_workers(std::vector<Worker> workers, std::size_t n_ranks = 1) {
    workers_ = std::move(workers);
    n_ranks_ = n_ranks;
  }

  /// Logs what the coordinator's own end of a channel says.
  void own_report(std::uint32_t number, bool sends, std::string_view text) const;
  /// Logs what carries the weights that the coordinator pushes to a worker.
  void weights_report(std::size_t worker, std::string_view text) const;
  /// Logs what a worker says of its end. Channels that it has no end of are ignored.
  void report(std::size_t worker, const wire::LinkReport& report) const;

  /// Counters of the coordinator's own end.
  void add_own(std::uint32_t number, bool sends, std::string transport,
               const rpc::ChannelCounters& counters);
  /// Counters of the coordinator's end of a worker's channel for weights.
  void add_weights(std::size_t worker, const rpc::LinkStats& stats);
  /// Counters of a worker's ends; those of channels that it has no end of are ignored.
  void add(std::size_t worker, const wire::SessionClosed& closed);

  /// In the order of the channels, each with its sender first.
  [[nodiscard]] std::vector<rpc::LinkStats> stats() const;

 private:
  struct Names {
    std::string from;
    std::string to;
  };
  struct Entry {
    SessionLink link;
    std::size_t worker = 0;  // Of weights: whose. Between ranks: the first of the group.
  };
  /// worker: of a channel for weights or between ranks.
  [[nodiscard]] Names names(std::uint32_t number, std::size_t worker = 0) const;
  /// Whoever sends on the channel into a worker; nothing: the coordinator.
  [[nodiscard]] std::optional<std::size_t> sender_to(std::size_t worker) const {
    if (worker < n_ranks_) return std::nullopt;
    return worker - n_ranks_;
  }
  void group_report(std::size_t worker, std::string_view text) const;
  /// The first worker of a worker's group.
  [[nodiscard]] std::size_t group_of(std::size_t worker) const {
    return worker / n_ranks_ * n_ranks_;
  }
  /// The first worker of the last group, which sends results.
  [[nodiscard]] std::size_t last() const { return workers_.size() - n_ranks_; }
  [[nodiscard]] bool has_end(std::size_t worker, std::uint32_t number, bool sends) const;

  std::vector<Worker> workers_;
  std::size_t n_ranks_ = 1;
  std::vector<Entry> entries_;
};

}  // namespace recua::cluster
