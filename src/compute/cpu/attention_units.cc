#include "compute/cpu/attention_units.h"

#include <algorithm>

namespace recua::compute {

void AttentionUnits::begin(const AttentionBatch& batch, std::uint32_t window,
                           const UnitLimits& limits) {
  n_kv_heads_ = limits.n_kv_heads;
  seen_.clear();
  for (const AttentionRow& row : batch.rows) {
    const std::size_t end = std::size_t{row.position} + 1;
    seen_.push_back({.first = window > 0 && end > window ? end - window : 0, .end = end});
  }
  std::size_t rows_max = std::max<std::size_t>(1, limits.n_rows_max / limits.n_group);
  std::size_t heads_max = limits.n_kv_heads;
  for (;;) {
    make_groups(batch, limits, rows_max, heads_max);
    std::size_t n_units = 0;
    for (const RowGroup& group : groups_) {
      n_units += (group.block_end - group.block_begin) *
                 ((n_kv_heads_ + group.n_heads - 1) / group.n_heads);
    }
    if (n_units >= limits.n_units_min || (rows_max == 1 && heads_max == 1)) break;
    if (heads_max > 1) {
      heads_max = (heads_max + 1) / 2;
    } else {
      rows_max = (rows_max + 1) / 2;
    }
  }
  group_ = 0;
  head_ = 0;
  block_ = groups_.empty() ? 0 : groups_.front().block_begin;
}

void AttentionUnits::make_groups(const AttentionBatch& batch, const UnitLimits& limits,
                                 std::size_t rows_max, std::size_t heads_max) {
  groups_.clear();
  for (std::size_t r = 0; r < batch.rows.size(); ++r) {
    const bool joins = !groups_.empty() && groups_.back().n_rows < rows_max &&
                       batch.rows[r].sequence == batch.rows[r - 1].sequence &&
                       batch.rows[r].position > batch.rows[r - 1].position;
    if (!joins) groups_.push_back({.row = r, .block_begin = seen_[r].first / kBlockTokens});
    RowGroup& group = groups_.back();
    ++group.n_rows;
    group.block_end = (seen_[r].end - 1) / kBlockTokens + 1;
  }
  n_rows_max_ = 0;
  for (RowGroup& group : groups_) {
    const std::size_t n_rows = group.n_rows * limits.n_group;
    if (n_rows < limits.n_wide_rows) {
      group.n_heads = std::clamp<std::size_t>(limits.n_rows_max / n_rows, 1, heads_max);
    }
    n_rows_max_ = std::max(n_rows_max_, n_rows * group.n_heads);
  }
}

std::size_t AttentionUnits::cost_of(const RowGroup& group, std::size_t block) const {
  const std::size_t begin = block * kBlockTokens;
  const Seen& last = seen_[group.row + group.n_rows - 1];
  const std::size_t n_tokens = std::min(last.end, begin + kBlockTokens) - begin;
  return group.n_rows * (n_tokens + 32);  // And what does not depend on the tokens.
}

bool AttentionUnits::next_wave(std::size_t n_max) {
  units_.clear();
  spans_.clear();
  cost_ = 0;
  while (group_ < groups_.size() && units_.size() < n_max) {
    const RowGroup& group = groups_[group_];
    spans_.push_back({.begin = units_.size()});
    for (; block_ < group.block_end && units_.size() < n_max; ++block_) {
      const std::size_t head_end = std::min(n_kv_heads_, head_ + group.n_heads);
      units_.push_back({.group = &group,
                        .head_begin = head_,
                        .head_end = head_end,
                        .block = block_,
                        .cost = cost_});
      cost_ += cost_of(group, block_) * (head_end - head_);
    }
    spans_.back().end = units_.size();
    if (block_ < group.block_end) break;
    head_ += group.n_heads;
    if (head_ >= n_kv_heads_) {
      head_ = 0;
      ++group_;
    }
    if (group_ < groups_.size()) block_ = groups_[group_].block_begin;
  }
  return !units_.empty();
}

}  // namespace recua::compute
