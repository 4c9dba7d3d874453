#include "rpc/lane_set.h"

#include <algorithm>

#include <fmt/format.h>

namespace recua::rpc {
namespace {

template <class From, class To>
void add(const From& from, To& to) {
  to.posts += from.posts;
  to.requests += from.requests;
  to.polls += from.polls;
  to.completions += from.completions;
}

}  // namespace

std::string LaneSet::description() const {
  std::string out;
  for (const auto& lane : lanes_) {
    if (lane == nullptr) continue;
    out += fmt::format("{}{} mtu {}", out.empty() ? "rdma " : " + ",
                       net::verbs::describe(lane->local().port), lane->mtu_bytes());
  }
  return out;
}

LaneMask LaneSet::present() const {
  LaneMask out = 0;
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    if (lanes_[i] != nullptr) out |= LaneMask{1} << i;
  }
  return out;
}

LaneMask LaneSet::failed() const {
  LaneMask out = 0;
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    if (lanes_[i] != nullptr && lanes_[i]->failure()) out |= LaneMask{1} << i;
  }
  return out;
}

std::string LaneSet::failure() const {
  for (const auto& lane : lanes_) {
    if (lane != nullptr && lane->failure()) return lane->failure()->message;
  }
  return {};
}

bool LaneSet::usable(std::size_t i) const {
  return lanes_[i] != nullptr && lanes_[i]->is_connected() && !lanes_[i]->failure();
}

void LaneSet::arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready,
                  bool for_completions) {
  for (const auto& lane : lanes_) {
    if (lane != nullptr) lane->arm(executor, ready, for_completions);
  }
}

bool LaneSet::arm_in(const net::WaitSet& set, bool for_completions) {
  return std::all_of(lanes_.begin(), lanes_.end(), [&](const auto& lane) {
    return lane == nullptr || lane->arm_in(set, for_completions);
  });
}

void LaneSet::leave_set() {
  for (const auto& lane : lanes_) {
    if (lane != nullptr) lane->leave_set();
  }
}

void LaneSet::give_up_waits() {
  for (const auto& lane : lanes_) {
    if (lane != nullptr) lane->give_up_waits();
  }
}

void LaneSet::drop(std::size_t i) {
  add(lanes_[i]->counters(), dropped_);
  lanes_[i]->give_up_waits();
  ends_.take(std::move(lanes_[i]));
}

void LaneSet::add_to(ChannelCounters& counters) const {
  add(dropped_, counters);
  for (const auto& lane : lanes_) {
    if (lane != nullptr) add(lane->counters(), counters);
  }
}

}  // namespace recua::rpc
