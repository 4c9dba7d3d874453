#include "train/bucket_reducer.h"

#include <utility>

namespace recua::train {

BucketReducer::BucketReducer(const Shards& shards, collective::ChannelCommunicator& communicator,
                             bool overlaps)
    : shards_(&shards), communicator_(&communicator), n_done_(shards.buckets().size()) {
  if (overlaps) thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
}

void BucketReducer::begin(std::span<float> gradients) {
  const std::scoped_lock lock(mutex_);
  gradients_ = gradients;
  n_final_ = 0;
  n_done_ = 0;
}

void BucketReducer::final_from(std::size_t n_open) {
  const std::span<const Shards::Bucket> buckets = shards_->buckets();
  const std::scoped_lock lock(mutex_);
  while (n_final_ < buckets.size() && buckets[n_final_].begin >= n_open) ++n_final_;
  changed_.notify_all();
}

Result<void> BucketReducer::finish() {
  if (!thread_.joinable()) {
    for (; n_done_ < shards_->buckets().size(); ++n_done_) {
      RECUA_RETURN_IF_ERROR(reduce(n_done_));
    }
    return ok();
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || n_done_ == shards_->buckets().size(); });
  if (failure_) return *failure_;
  return ok();
}

Result<void> BucketReducer::reduce(std::size_t bucket) {
  // A rank that still computes reads nothing. What is sent to it before it gets here would fill its
  // connection, which TCP takes for dead after some seconds; a barrier is a few bytes.
  RECUA_RETURN_IF_ERROR(communicator_->barrier());
  const Shards::Bucket& at = shards_->buckets()[bucket];
  return communicator_->reduce_scatter(gradients_.subspan(at.begin, at.size()),
                                       shards_->counts(bucket));
}

/// For the thread, which nobody above it would catch for.
Result<void> BucketReducer::reduce_caught(std::size_t bucket) {
  try {
    return reduce(bucket);
  } catch (...) {
    return Error{ErrorCode::kResourceExhausted, "adding up gradients ran out of memory"};
  }
}

void BucketReducer::work(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!failure_) {
    if (!changed_.wait(lock, stop, [this] { return n_done_ < n_final_; })) return;
    const std::size_t bucket = n_done_;
    lock.unlock();
    Result<void> reduced = reduce_caught(bucket);
    lock.lock();
    if (reduced.ok()) {
      ++n_done_;
    } else {
      failure_ = std::move(reduced).error();
    }
    changed_.notify_all();
  }
}

}  // namespace recua::train
