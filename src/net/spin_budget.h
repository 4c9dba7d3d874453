#pragma once
/// SpinBudget: how long a data path polls before it sleeps. Threads: one at a time.

#include <algorithm>

#include "net/clock.h"

namespace recua::net {

/// The whole limit while what is awaited comes within it, half as long each time that it does not,
/// down to a sixteenth. So links that are waited for longer than polling can bridge cost little,
/// and one quick answer brings the full time back.
class SpinBudget {
 public:
  explicit SpinBudget(Duration limit) : limit_(limit), current_(limit) {}
  [[nodiscard]] Duration current() const { return current_; }
  /// Something came after so long, whether it was slept for or not.
  void came_after(Duration waited) {
    current_ = waited <= limit_ ? limit_ : std::max(current_ / 2, limit_ / 16);
  }

 private:
  Duration limit_;
  Duration current_;
};

}  // namespace recua::net
