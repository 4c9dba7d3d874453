#include "train/shards.h"

#include "base/check.h"

namespace recua::train {
namespace {

/// Parts begin at multiples of this many values of their bucket: whole vectors for the kernels.
constexpr std::size_t kPartValues = 32;

}  // namespace

Shards::Shards(const ParameterLayout& layout, std::uint32_t n_ranks, std::size_t bucket_floats_min)
    : n_ranks_(n_ranks) {
  RECUA_CHECK(n_ranks > 0);
  // Where the backward pass stops for a moment, from the end of the array to its beginning.
  std::vector<std::size_t> stops = {layout.output_norm()};
  for (std::size_t i = layout.n_layers(); i-- > 0;) stops.push_back(layout.layer(i).attn_norm);
  stops.push_back(0);
  std::size_t end = layout.n_params();
  for (const std::size_t begin : stops) {
    if (begin != 0 && end - begin < bucket_floats_min) continue;
    buckets_.push_back({.begin = begin, .end = end});
    end = begin;
  }
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    for (std::uint32_t r = 0; r < n_ranks; ++r) counts_.push_back(part(b, r).size());
  }
}

sys::Partition Shards::part(std::size_t bucket, std::uint32_t rank) const {
  const Bucket& whole = buckets_[bucket];
  sys::Partition own = sys::partition(whole.size(), rank, n_ranks_, kPartValues);
  own.begin += whole.begin;
  own.end += whole.begin;
  return own;
}

std::size_t Shards::size(std::uint32_t rank) const {
  std::size_t n = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) n += counts(b)[rank];
  return n;
}

}  // namespace recua::train
