#pragma once
/// Adds up the gradients of all ranks, bucket by bucket, while the backward pass still works on the
/// buckets below.
///
/// The calls are made by a thread of its own, one after another in the order of the buckets, so the
/// bits do not depend on how far the backward pass is. Between finish() and begin() that thread
/// sleeps and the communicator is the caller's.
/// Threads: one thread calls. An error of the communicator comes back from finish(), and its epoch
/// is over. The destructor waits for the call under way: whoever cannot wait cancels it.

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "base/result.h"
#include "collective/channel_communicator.h"
#include "train/shards.h"

namespace recua::train {

class BucketReducer {
 public:
  /// overlaps: else everything happens in finish(). Both outlive this.
  BucketReducer(const Shards& shards, collective::ChannelCommunicator& communicator, bool overlaps);
  BucketReducer(const BucketReducer&) = delete;
  BucketReducer& operator=(const BucketReducer&) = delete;
  ~BucketReducer() = default;

  /// gradients: of all parameters; the reducer's from where final_from() says until finish().
  void begin(std::span<float> gradients);
  /// What lies at n_open and behind it does not change any more.
  void final_from(std::size_t n_open);
  /// Returns when all buckets are added up: the caller's parts are sums over ranks, the others are
  /// of no use any more.
  Result<void> finish();

 private:
  Result<void> reduce(std::size_t bucket);
  Result<void> reduce_caught(std::size_t bucket);
  void work(const std::stop_token& stop);

  const Shards* shards_;
  collective::ChannelCommunicator* communicator_;
  std::span<float> gradients_;
  std::size_t n_final_ = 0;  // Buckets that may be added up,
  std::size_t n_done_ = 0;   // and those that are.
  std::optional<Error> failure_;
  std::mutex mutex_;  // Of the three above.
  std::condition_variable_any changed_;
  std::jthread thread_;  // None if nothing overlaps.
};

}  // namespace recua::train
