#pragma once
/// How the parameters are divided between the ranks of a data-parallel run.
///
/// The array is cut into buckets, the last one first: that is the order in which the backward pass
/// is done with their gradients. Each rank has an equal part of every bucket, so that all links are
/// equally busy while a bucket is added up. A rank's parts of all buckets, in that order, are its
/// shard: what it keeps moments of.
/// Method: Rajbhandari et al. 2020, "ZeRO", stage 1.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sys/thread_pool.h"
#include "train/parameters.h"

namespace recua::train {

/// Small enough that a model of some layers has several, large enough that a call's latency does
/// not count.
inline constexpr std::size_t kBucketFloatsMin = std::size_t{256} << 10;

class Shards {
 public:
  struct Bucket {
    std::size_t begin = 0;  // Of the parameter array.
    std::size_t end = 0;
    [[nodiscard]] std::size_t size() const { return end - begin; }
  };

  Shards(const ParameterLayout& layout, std::uint32_t n_ranks,
         std::size_t bucket_floats_min = kBucketFloatsMin);

  [[nodiscard]] std::uint32_t n_ranks() const { return n_ranks_; }
  [[nodiscard]] std::span<const Bucket> buckets() const { return buckets_; }
  /// Where a rank's part of a bucket lies in the parameter array; perhaps empty.
  [[nodiscard]] sys::Partition part(std::size_t bucket, std::uint32_t rank) const;
  /// The sizes of all ranks' parts of a bucket.
  [[nodiscard]] std::span<const std::size_t> counts(std::size_t bucket) const {
    return std::span(counts_).subspan(bucket * n_ranks_, n_ranks_);
  }
  /// Parameters in a rank's shard.
  [[nodiscard]] std::size_t size(std::uint32_t rank) const;

  /// fn(offset in the parameter array, offset in the shard, n) for the pieces that the parameters
  /// [begin, begin + n) of a rank's shard consist of.
  template <class Fn>
  void for_range(std::uint32_t rank, std::size_t begin, std::size_t n, Fn&& fn) const {
    std::size_t at = 0;  // Of the bucket's part in the shard.
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      const sys::Partition own = part(b, rank);
      const std::size_t first = std::max(begin, at);
      const std::size_t last = std::min(begin + n, at + own.size());
      if (first < last) fn(own.begin + (first - at), first, last - first);
      at += own.size();
    }
  }

 private:
  std::uint32_t n_ranks_;
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> counts_;  // [n_buckets, n_ranks]
};

/// The part of a step's examples that a rank computes: [begin, end) of them in their order.
inline sys::Partition examples_of(std::size_t n_examples, std::uint32_t rank,
                                  std::uint32_t n_ranks) {
  return sys::partition(n_examples, rank, n_ranks);
}

}  // namespace recua::train
