#pragma once
/// Communicator: how the ranks of one tensor-parallel slice exchange partial results inside a
/// forward pass. collective/ implements it over channels; a slice that is not split uses
/// SingleRank.
///
/// Sums are taken in rank order, so the same plan gives the same bits. Every call is collective:
/// all ranks make the same calls with the same sizes in the same order. Errors: kUnavailable or
/// kTimeout name the rank that is missing; the epoch is over then. Threads: the one compute thread
/// of the slice.

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace recua::model {

class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  [[nodiscard]] virtual std::uint32_t rank() const = 0;
  [[nodiscard]] virtual std::uint32_t n_ranks() const = 0;

  /// values[i] becomes the sum over ranks of their values[i], with the same bits on every rank.
  virtual Result<void> all_reduce(std::span<float> values) = 0;
  /// The same in two halves, so that the caller computes meanwhile. From begin on, values are the
  /// communicator's until finish, and no call but help_all_reduce() comes between them. By default
  /// all of it happens in the first half.
  virtual Result<void> begin_all_reduce(std::span<float> values) { return all_reduce(values); }
  virtual Result<void> finish_all_reduce() { return {}; }
  /// Gets on with it as far as that goes without waiting. The oftener, the more of it is over when
  /// it is finished; peers give up on who takes nothing for seconds.
  virtual Result<void> help_all_reduce() { return {}; }
  /// Whether so much of an all_reduce happens between its halves that it is worth computing in two
  /// parts. The same on every rank.
  [[nodiscard]] virtual bool overlaps() const { return false; }
  /// out = the ranks' parts one after another; counts[r] floats from rank r, mine.size() ==
  /// counts[rank].
  virtual Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                                  std::span<float> out) = 0;
  /// Everybody gets root's values.
  virtual Result<void> broadcast(std::span<float> values, std::uint32_t root) = 0;
  virtual Result<void> barrier() = 0;
};

/// The group of one.
class SingleRank final : public Communicator {
 public:
  [[nodiscard]] std::uint32_t rank() const override { return 0; }
  [[nodiscard]] std::uint32_t n_ranks() const override { return 1; }
  Result<void> all_reduce(std::span<float>) override { return {}; }
  Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t>,
                          std::span<float> out) override {
    for (std::size_t i = 0; i < mine.size(); ++i) out[i] = mine[i];
    return {};
  }
  Result<void> broadcast(std::span<float>, std::uint32_t) override { return {}; }
  Result<void> barrier() override { return {}; }
};

}  // namespace recua::model
