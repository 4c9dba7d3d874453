#pragma once
/// DirectSleep: sleeps in a WaitSet instead of a loop, where waits have lately been short enough
/// for it. Threads: one at a time.

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "net/wait_set.h"

namespace recua::net {

/// Arms everything that wakes a data path: in the set, or false if only the loop's way will do.
using ArmIn = std::function<bool(const WaitSet& set)>;

class DirectSleep {
 public:
  /// arm_in: empty, and every sleep is one in the loop.
  explicit DirectSleep(ArmIn arm_in) : arm_in_(std::move(arm_in)) {}

  /// False: the next sleep is one in the loop.
  bool arm() {
    is_armed_ = false;
    if (!arm_in_) return false;
    if (n_left_out_ > 0) {
      --n_left_out_;
      return false;
    }
    if (!set_) set_.emplace();
    is_armed_ = arm_in_(*set_);
    return is_armed_;
  }
  [[nodiscard]] bool is_armed() const { return is_armed_; }

  /// After arm() was true. False: nothing came in time; poll, and arm again.
  bool sleep() {
    const bool woken = set_->wait();
    misses_ = woken ? 0 : std::min(misses_ + 1, kMissesMax);
    // This wait goes on in the loop, and then ever more of them.
    if (!woken) n_left_out_ = 1U << misses_;
    return woken;
  }

 private:
  static constexpr unsigned kMissesMax = 5;

  ArmIn arm_in_;
  std::optional<WaitSet> set_;  // Made when it is first needed.
  bool is_armed_ = false;
  unsigned misses_ = 0;      // Waits in a row that were too long.
  unsigned n_left_out_ = 0;  // Waits to come that are not tried here.
};

}  // namespace recua::net
