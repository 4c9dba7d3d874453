#pragma once
/// How attention of a step is cut into units of work: only cpu_attention.cc includes this.
///
/// A unit is a group of rows, some neighbouring KV heads and a block of kBlockTokens tokens,
/// counted from position 0 of the sequence. It gives, for each of its rows and heads, a softmax of
/// that block alone and its weighted values; the blocks of a row are then merged in ascending order
/// (Dao et al. 2022, "FlashAttention"; Dao et al. 2023, "Flash-Decoding"). The cuts depend on
/// positions only, so a row's result depends neither on its batch nor on the pages or the threads.
///
/// Units are done in waves, whose results fit a fixed amount of memory per thread: what is needed
/// grows neither with the context nor with the prompt.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/device.h"

namespace recua::compute {

/// K and V of so many tokens of a head of 128 in F16 are 128 KiB: half of a second-level cache. The
/// merging is then 1 in 100 operations.
inline constexpr std::size_t kBlockTokens = 256;

/// The positions that a row sees: [first, end).
struct Seen {
  std::size_t first = 0;
  std::size_t end = 0;
};

/// Neighbouring rows of one sequence with ascending positions: they share what is read of the
/// cache.
struct RowGroup {
  std::size_t row = 0;
  std::size_t n_rows = 0;
  std::size_t block_begin = 0;  // The blocks that some row sees.
  std::size_t block_end = 0;
  std::size_t n_heads = 1;  // KV heads of a unit.
};

struct AttentionUnit {
  const RowGroup* group = nullptr;
  std::size_t head_begin = 0;  // KV heads.
  std::size_t head_end = 0;
  std::size_t block = 0;
  std::size_t cost = 0;  // Of all units before it in its wave.
};

/// The units of one wave that belong to one group and the same heads: [begin, end) in units().
struct UnitSpan {
  std::size_t begin = 0;
  std::size_t end = 0;
};

struct UnitLimits {
  std::size_t n_kv_heads = 1;
  std::size_t n_group = 1;     // Query heads of a KV head.
  std::size_t n_rows_max = 1;  // Queries of a unit: tokens times query heads.
  /// Groups with fewer queries of a KV head take several of them: their keys lie side by side in a
  /// page, and memory is read fastest from end to end (measured: 9 GB/s head by head).
  std::size_t n_wide_rows = 1;
  /// Units are made smaller until there are so many, if that helps.
  std::size_t n_units_min = 1;
};

/// Keeps its memory from step to step. Threads: one.
class AttentionUnits {
 public:
  void begin(const AttentionBatch& batch, std::uint32_t window, const UnitLimits& limits);
  /// The next n_max units at most. False: there are none left.
  bool next_wave(std::size_t n_max);

  [[nodiscard]] const Seen& seen(std::size_t row) const { return seen_[row]; }
  /// Queries of the largest unit.
  [[nodiscard]] std::size_t n_rows_max() const { return n_rows_max_; }
  [[nodiscard]] std::span<const AttentionUnit> units() const { return units_; }
  [[nodiscard]] std::span<const UnitSpan> spans() const { return spans_; }
  /// Of all units of the wave.
  [[nodiscard]] std::size_t cost() const { return cost_; }

 private:
  void make_groups(const AttentionBatch& batch, const UnitLimits& limits, std::size_t rows_max,
                   std::size_t heads_max);
  [[nodiscard]] std::size_t cost_of(const RowGroup& group, std::size_t block) const;

  std::size_t n_kv_heads_ = 0;
  std::size_t n_rows_max_ = 0;
  std::size_t cost_ = 0;
  std::size_t group_ = 0;  // Where the next wave begins.
  std::size_t head_ = 0;
  std::size_t block_ = 0;
  std::vector<Seen> seen_;
  std::vector<RowGroup> groups_;
  std::vector<AttentionUnit> units_;
  std::vector<UnitSpan> spans_;
};

}  // namespace recua::compute
