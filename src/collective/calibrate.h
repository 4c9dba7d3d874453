#pragma once
/// Measures where one-shot sums stop paying off on a group's links.

#include <cstddef>
#include <vector>

#include "base/result.h"
#include "collective/channel_communicator.h"

namespace recua::collective {

/// Sums of so many bytes per second are over before it is worth while to compute meanwhile: two
/// halves of a prompt lose some percent.
inline constexpr double kFastBytesPerSecond = 1e9;

struct Calibration {
  /// What both ways of an all_reduce took, as rank 0 saw it: medians.
  struct Point {
    std::size_t n_values = 0;
    net::Duration one_shot{};
    net::Duration scattered{};
  };
  std::vector<Point> points = {};  // On rank 0 only; empty where options fix the switch.
  std::size_t one_shot_values_max = 0;
  bool overlaps = false;  // Links are so slow that callers should compute meanwhile.
};

struct CalibrationBounds {
  /// Once rank 0's calls have taken so long, disturbed ones counted as their median, no larger
  /// vector is tried; nor after four times as long in all. The first size always is tried. Each
  /// takes about as long as those before it together, so both may be exceeded about twice.
  net::Duration time_max = std::chrono::milliseconds(50);
  /// The longest vector that will ever be summed: no larger one is tried.
  std::size_t values_max = std::size_t{1} << 20U;
  bool may_overlap = true;  // False: some rank knows nothing of it, and is not told.
};

/// Sums vectors of 4 KiB, 8 KiB, ... 4 MiB both ways, then all ranks take rank 0's switch, and
/// whether to compute meanwhile. A collective call: every rank makes it, at start-up, with the same
/// values_max. Nothing happens where the options fix the switch. Errors: those of the calls.
Result<Calibration> calibrate(ChannelCommunicator& communicator, const net::Clock& clock,
                              const CalibrationBounds& bounds = {});

/// Whether to compute while sums travel pays off: the longest vector took so long.
[[nodiscard]] bool is_slow(const Calibration::Point& longest);

/// The largest one-shot vector, from these points: where the sum over sizes of (time as chosen /
/// time of the better way) is least, so that one noisy size decides nothing. Beyond the sizes the
/// nearest one's answer holds. 0 or a power of two.
[[nodiscard]] std::size_t choose_switch(const std::vector<Calibration::Point>& points);

}  // namespace recua::collective
