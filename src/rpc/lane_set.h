#pragma once
/// The lanes of a path, as both of its sides have them: known by index, some of them gone.
/// Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "net/verbs/lane.h"
#include "rpc/background_end.h"
#include "rpc/fast_path.h"

namespace recua::rpc {

class LaneSet {
 public:
  explicit LaneSet(std::vector<std::unique_ptr<net::verbs::Lane>> lanes)
      : lanes_(std::move(lanes)) {}

  [[nodiscard]] std::size_t size() const { return lanes_.size(); }
  /// Null: dropped.
  [[nodiscard]] net::verbs::Lane* operator[](std::size_t i) const { return lanes_[i].get(); }

  /// "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096", lanes joined by " + ".
  [[nodiscard]] std::string description() const;
  [[nodiscard]] LaneMask present() const;  // Failed ones included.
  [[nodiscard]] LaneMask failed() const;
  [[nodiscard]] std::string failure() const;  // Why the first of them did; empty: none.
  /// Connected and not failed.
  [[nodiscard]] bool usable(std::size_t i) const;

  void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready,
           bool for_completions);
  bool arm_in(const net::WaitSet& set, bool for_completions);
  void leave_set();
  void give_up_waits();
  /// Of a lane that is fenced: its counters stay. Its end is waited for in the destructor.
  void drop(std::size_t i);
  void add_to(ChannelCounters& counters) const;

 private:
  std::vector<std::unique_ptr<net::verbs::Lane>> lanes_;
  net::verbs::LaneCounters dropped_;
  BackgroundEnd ends_;
};

}  // namespace recua::rpc
