#pragma once
/// RankTrainer: one rank of a data-parallel run. It computes the gradient of its part of a step's
/// examples, adds up its shard with the other ranks, updates that shard, and gets the others'.
///
/// Memory: parameters and gradients (8 bytes each), moments and a copy of the gradient of its shard
/// (12 bytes for each parameter of it), and what the network takes: rank_bytes().
/// Bits: all ranks have the same parameters; they depend on the number of ranks, not on threads.
/// Threads: one thread calls; it computes with the Team's. stop() any.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "collective/channel_communicator.h"
#include "train/batch.h"
#include "train/bucket_reducer.h"
#include "train/network.h"
#include "train/optimizer.h"
#include "train/shards.h"

namespace recua::train {

struct RankOptions {
  std::uint32_t rank = 0;
  std::uint32_t n_ranks = 1;
  std::size_t batch = 1;    // Examples of a pass at most.
  std::size_t n_ctx = 256;  // Tokens of an example at most.
  bool recompute = false;
  AdamOptions adam = {};
  bool overlaps = true;  // Sums with the backward pass.
  std::size_t bucket_floats_min = kBucketFloatsMin;
};

struct RankStep {
  std::uint64_t step = 0;  // From 0.
  double lr = 0.0;
  float scale = 0.0F;                  // 1 / counted tokens of the step, over all ranks.
  std::vector<Example> examples = {};  // This rank's; at least one.
};

/// What a rank adds to a step's numbers.
struct RankSums {
  double loss = 0.0;         // Of its examples' counted tokens.
  double sum_squares = 0.0;  // Of the gradient of its shard.
};

/// The length of the gradient: adds in rank order.
double gradient_norm(std::span<const RankSums> ranks);

/// What a rank allocates.
std::uint64_t rank_bytes(const ModelShape& shape, const RankOptions& options,
                         std::size_t n_threads);

class RankTrainer {
 public:
  /// team outlives the trainer. Parameters and moments are zero. kResourceExhausted: no memory.
  static Result<std::unique_ptr<RankTrainer>> create(Team& team, const ModelShape& shape,
                                                     const RankOptions& options);

  /// One step. communicator: null for the only rank; the same one each time. reduced is called once
  /// shard_gradient() is the sum over ranks, before the parameters change; shard_gradient() stays
  /// until the next step.
  /// Errors: of the communicator; kCancelled: after stop(). That a gradient is not a number is for
  /// whoever gets it to see.
  Result<void> step(const RankStep& step, collective::ChannelCommunicator* communicator,
                    const std::function<void(const RankSums&)>& reduced);

  /// A step under way ends before its next pass, and every later one does.
  void stop() { stop_ = true; }
  /// After the last step, or one that threw; calls of the communicator are over or cancelled. From
  /// here on it is not used any more.
  void end() { reducer_.reset(); }

  [[nodiscard]] const ParameterLayout& layout() const { return network_.layout(); }
  [[nodiscard]] const Shards& shards() const { return shards_; }
  [[nodiscard]] std::span<float> params() const { return params_.span(); }
  /// Of the shard.
  [[nodiscard]] std::span<float> m() const { return m_.span(); }
  [[nodiscard]] std::span<float> v() const { return v_.span(); }
  [[nodiscard]] std::span<const float> shard_gradient() const { return shard_gradient_.span(); }

 private:
  RankTrainer(Team& team, const RankOptions& options, Network network);
  Result<void> allocate();
  Result<double> run_passes(const RankStep& step, BucketReducer* reducer);
  Result<double> share_norm(const RankSums& own, collective::ChannelCommunicator* communicator);
  void update(const RankStep& step, double norm);

  Team* team_;
  RankOptions options_;
  Network network_;
  Shards shards_;
  FloatBuffer params_, gradients_, m_, v_, shard_gradient_;
  Batch pass_;
  std::vector<float> floats_;        // [n_ranks, 4]: the ranks' sums as they travel,
  std::vector<std::size_t> counts_;  // 4 of each rank,
  std::vector<RankSums> sums_;       // and as they are.
  std::atomic<bool> stop_ = false;
  std::unique_ptr<BucketReducer> reducer_;
};

}  // namespace recua::train
