#pragma once
/// Passes over a whole row of logits, of which a vocabulary may have 250,000: one thread makes them
/// between two tokens, while all others wait.
///
/// Each is compiled for several widths of vectors. Lanes and the order of their sums are those of
/// the source, so all of them give the same bits, and the CPU's widest are used whatever set was
/// named for the kernels.
///
/// Threads: any; no state.

#include <optional>
#include <span>

namespace recua::sampling {

struct LogitPasses {
  const char* instruction_set;
  /// The largest value; nothing when one is not below +infinity. -infinity if there are none.
  std::optional<float> (*max_below_infinity)(std::span<const float> values);
  /// The sum of exp(logits[i] - max), none of which is above max: exp in float, within 2e-7 of it,
  /// the sum in double.
  double (*sum_of_exp)(std::span<const float> logits, float max);
};

/// Those that this CPU has, the widest first.
std::span<const LogitPasses> logit_passes();

}  // namespace recua::sampling
