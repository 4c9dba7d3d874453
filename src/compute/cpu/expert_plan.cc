#include "compute/cpu/expert_plan.h"

#include <algorithm>

#include "base/check.h"

namespace recua::compute {

void ExpertPlan::sort(std::span<const std::int32_t> ids, std::size_t n_experts) {
  begin_.assign(n_experts + 1, 0);
  for (const std::int32_t id : ids) {
    RECUA_CHECK(id >= 0 && static_cast<std::size_t>(id) < n_experts);
    ++begin_[static_cast<std::size_t>(id) + 1];
  }
  for (std::size_t e = 0; e < n_experts; ++e) begin_[e + 1] += begin_[e];
  next_ = begin_;
  pairs_.resize(ids.size());
  for (std::size_t p = 0; p < ids.size(); ++p)
    pairs_[next_[static_cast<std::size_t>(ids[p])]++] = p;

  used_.clear();
  cost_before_.assign(1, 0);
  for (std::size_t e = 0; e < n_experts; ++e) {
    if (places(e).empty()) continue;
    used_.push_back(static_cast<std::uint32_t>(e));
    cost_before_.push_back(cost_before_.back() + cost_of(e));
  }
}

// The dearest first, each to the thread that has least (Graham 1969): at most a third above the
// best division, and close to it when experts are many.
double ExpertPlan::divide_whole(std::size_t n_threads) {
  by_cost_ = used_;
  std::sort(by_cost_.begin(), by_cost_.end(), [this](std::uint32_t a, std::uint32_t b) {
    return cost_of(a) != cost_of(b) ? cost_of(a) > cost_of(b) : a < b;
  });
  thread_.assign(begin_.size() - 1, 0);
  load_.assign(n_threads, 0);
  for (const std::uint32_t e : by_cost_) {
    const auto least = std::min_element(load_.begin(), load_.end());
    *least += cost_of(e);
    thread_[e] = static_cast<std::size_t>(least - load_.begin());
  }
  const auto even = static_cast<double>(cost_before_.back()) / static_cast<double>(n_threads);
  return static_cast<double>(*std::max_element(load_.begin(), load_.end())) - even;
}

sys::Partition ExpertPlan::rows_of(std::size_t used_index, std::size_t n_rows, std::size_t granule,
                                   std::size_t thread, std::size_t n_threads) const {
  const std::size_t n_granules = (n_rows + granule - 1) / granule;
  const std::size_t all = cost_before_.back() * n_granules;
  const std::size_t before = cost_before_[used_index] * n_granules;
  const std::size_t cost = cost_before_[used_index + 1] - cost_before_[used_index];
  // The first granule that begins at or after the thread's share of the whole does.
  const auto cut = [&](std::size_t t) {
    const std::size_t at = all / n_threads * t + all % n_threads * t / n_threads;
    const std::size_t granules = at <= before ? 0 : (at - before + cost - 1) / cost;
    return std::min(n_rows, granules * granule);
  };
  return {cut(thread), cut(thread + 1)};
}

}  // namespace recua::compute
