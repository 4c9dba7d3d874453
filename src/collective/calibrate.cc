#include "collective/calibrate.h"

#include <algorithm>
#include <array>
#include <limits>

namespace recua::collective {
namespace {

constexpr std::size_t kValuesMin = 1024;
constexpr std::size_t kValuesMax = std::size_t{1} << 20U;
constexpr std::size_t kNoLimit = std::size_t{1} << 40U;
constexpr std::size_t kRounds = 7;  // Of each way, in turns; after one to warm up.
/// While a group starts, others are busy too: a call that waits for a processor takes milliseconds.
constexpr int kDisturbance = 4;

net::Duration median(std::array<net::Duration, kRounds>& times) {
  std::sort(times.begin(), times.end());
  return times[kRounds / 2];
}

double nanoseconds(net::Duration duration) {
  return static_cast<double>(std::max<std::int64_t>(duration.count(), 1));
}

}  // namespace

bool is_slow(const Calibration::Point& longest) {
  const double bytes = static_cast<double>(longest.n_values * sizeof(float));
  const double seconds = 1e-9 * nanoseconds(std::min(longest.one_shot, longest.scattered));
  return bytes / seconds < kFastBytesPerSecond;
}

std::size_t choose_switch(const std::vector<Calibration::Point>& points) {
  std::size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t n_one_shot = 0; n_one_shot <= points.size(); ++n_one_shot) {
    double cost = 0;
    for (std::size_t i = 0; i < points.size(); ++i) {
      const double one_shot = nanoseconds(points[i].one_shot);
      const double scattered = nanoseconds(points[i].scattered);
      cost += (i < n_one_shot ? one_shot : scattered) / std::min(one_shot, scattered);
    }
    if (cost < least) {
      least = cost;
      best = n_one_shot;
    }
  }
  if (best == 0) return 0;
  return best == points.size() ? kNoLimit : points[best - 1].n_values;
}

Result<Calibration> calibrate(ChannelCommunicator& communicator, const net::Clock& clock,
                              const CalibrationBounds& bounds) {
  Calibration out;
  if (const auto fixed = communicator.options().one_shot_values_max) {
    out.one_shot_values_max = *fixed;
    return out;
  }
  const net::TimePoint begin = clock.now();
  net::Duration undisturbed{};
  const std::size_t values_max = std::clamp(bounds.values_max, kValuesMin, kValuesMax);
  for (std::size_t n = kValuesMin; n <= values_max; n *= 2) {
    std::vector<float> values(n);
    std::array<net::Duration, kRounds> one_shot{};
    std::array<net::Duration, kRounds> scattered{};
    for (std::size_t round = 0; round <= kRounds; ++round) {
      for (const bool whole : {true, false}) {
        communicator.set_one_shot_values_max(whole ? n : 0);
        const net::TimePoint start = clock.now();
        RECUA_RETURN_IF_ERROR(communicator.all_reduce(values));
        if (round > 0) (whole ? one_shot : scattered)[round - 1] = clock.now() - start;
      }
    }
    out.points.push_back(
        {.n_values = n, .one_shot = median(one_shot), .scattered = median(scattered)});
    undisturbed +=
        (out.points.back().one_shot + out.points.back().scattered) * static_cast<int>(kRounds + 1);
    const bool in_time =
        undisturbed < bounds.time_max && clock.now() - begin < kDisturbance * bounds.time_max;
    std::array<float, 1> go_on{in_time ? 1.0F : 0.0F};
    RECUA_RETURN_IF_ERROR(communicator.broadcast(go_on, 0));
    if (go_on[0] == 0.0F) break;
  }
  // 0 or a power of two, which F32 has exactly.
  const bool overlaps = bounds.may_overlap && is_slow(out.points.back());
  std::array<float, 2> chosen{static_cast<float>(choose_switch(out.points)),
                              overlaps ? 1.0F : 0.0F};
  const std::size_t n_told = bounds.may_overlap ? 2 : 1;  // Older ranks expect one value.
  RECUA_RETURN_IF_ERROR(communicator.broadcast(std::span(chosen).first(n_told), 0));
  if (communicator.rank() != 0) out.points.clear();
  out.one_shot_values_max = static_cast<std::size_t>(chosen[0]);
  out.overlaps = chosen[1] != 0.0F;
  communicator.set_one_shot_values_max(out.one_shot_values_max);
  communicator.set_overlaps(out.overlaps);
  return out;
}

}  // namespace recua::collective
