#pragma once
/// Checks a StepBatch, every id, position, page and count of it, and keeps the sequence tables.
///
/// Each slice has one, since what it is told may come from a peer; whoever drives slices may have
/// one as well, to refuse a wrong batch before it reaches any of them.
/// Threads: one at a time.

#include <cstdint>
#include <span>

#include "base/result.h"
#include "kv/sequence_table.h"
#include "model/executor.h"

namespace recua::model {

/// The most `top` entries that an output may ask for.
inline constexpr std::uint32_t kTopMax = 1024;

struct BatchLimits {
  std::uint32_t n_rows = 0;     // Most rows of a batch.
  std::uint32_t n_outputs = 0;  // Most outputs of a batch.
  std::uint32_t vocab_size = 0;
  kv::TableLimits tables = {};
};

class BatchTables {
 public:
  explicit BatchTables(const BatchLimits& limits) : limits_(limits), table_(limits.tables) {}

  /// Checks the whole batch, then applies its operations and appends its tokens.
  /// kInvalidArgument: names what is wrong and what would be right. kResourceExhausted: too many
  /// sequences. After an error nothing has changed.
  Result<void> apply(const StepBatch& batch);
  /// The same checks with another bound on rows and none on outputs; changes nothing.
  Result<void> check(const StepBatch& batch, std::uint32_t n_rows_max);

  [[nodiscard]] const kv::SequenceTable& table() const { return table_; }
  void clear() { table_.clear(); }

 private:
  Result<void> apply_group(const StepBatch& batch);

  BatchLimits limits_;
  kv::SequenceTable table_;
};

}  // namespace recua::model
