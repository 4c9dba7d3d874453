#pragma once
/// SplitPlan: who holds which part of a model. Stages one after another, each a range of layers;
/// within a stage ranks, each a share of heads, feed-forward columns and vocabulary rows.

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "cluster/machines.h"
#include "cluster/model_shape.h"

namespace recua::cluster {

struct IndexRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;  // One past the last.

  [[nodiscard]] std::uint32_t size() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

struct RankShare {
  std::uint32_t machine = 0;  // Index into ClusterShape::machines.
  IndexRange heads = {};      // Query heads.
  IndexRange ffn = {};        // Columns of the feed-forward, of each expert.
  IndexRange vocab = {};      // Rows of the embedding table and the output matrix.

  friend bool operator==(const RankShare&, const RankShare&) = default;
};

struct StagePlan {
  IndexRange layers = {};
  std::vector<RankShare> ranks = {};

  friend bool operator==(const StagePlan&, const StagePlan&) = default;
};

struct SplitPlan {
  std::vector<StagePlan> stages;
  std::uint32_t n_ubatch = 0;  // Tokens of a micro-batch of a prompt; 0: what is best.

  [[nodiscard]] std::uint32_t n_machines() const;
  /// Ranks of the largest stage.
  [[nodiscard]] std::uint32_t n_ranks_max() const;
  friend bool operator==(const SplitPlan&, const SplitPlan&) = default;
};

/// The KV heads that a range of query heads needs. With more ranks than KV heads some are needed by
/// several ranks.
IndexRange kv_heads_of(const ModelShape& model, IndexRange heads);

/// Divides a stage among n machines in proportion to speeds (all > 0), every rank at least one
/// query head. Heads stay together with their KV head while there are enough of those. n is at most
/// n_heads.
std::vector<RankShare> divide_stage(const ModelShape& model, const std::vector<double>& speeds);

/// n items in parts of multiples of granule, in proportion to weights, each part at least one
/// granule (so n / granule >= weights.size()); the last one also takes what is left over.
std::vector<IndexRange> divide(std::uint32_t n, std::uint32_t granule,
                               const std::vector<double>& weights);

/// Bytes that one rank needs, by what for.
struct MemoryNeed {
  std::uint64_t weights = 0;
  std::uint64_t cache = 0;
  std::uint64_t working = 0;  // Activations, rings.

  [[nodiscard]] std::uint64_t total() const { return weights + cache + working; }
};

/// What sizes caches and rings.
struct MemoryOptions {
  std::uint64_t n_cache_tokens = 4096;  // Of all sequences together.
  std::uint32_t n_ubatch = 512;
};

/// Weights of some layers by how ranks divide them.
struct LayerBytes {
  std::uint64_t heads = 0;
  std::uint64_t kv = 0;
  std::uint64_t ffn = 0;
  std::uint64_t whole = 0;

  LayerBytes& operator+=(const LayerBytes& other);
  friend LayerBytes operator-(LayerBytes a, const LayerBytes& b);
};
LayerBytes layer_bytes(const LayerShape& layer);

/// Rounded up, so that a plan that fits here fits there.
MemoryNeed memory_need(const ModelShape& model, const StagePlan& stage, std::size_t rank,
                       const MemoryOptions& options);
/// The same with the sum over the stage's layers known.
MemoryNeed memory_need(const ModelShape& model, const LayerBytes& layers, const StagePlan& stage,
                       std::size_t rank, const MemoryOptions& options);

/// That layers and shares cover the model once, in order, and machines exist and occur once.
/// kInvalidArgument: names the stage, the field and what would be right.
Result<void> check_plan(const ModelShape& model, const ClusterShape& cluster,
                        const SplitPlan& plan);

/// kResourceExhausted: per worker what it has and would need.
Result<void> check_memory(const ModelShape& model, const ClusterShape& cluster,
                          const SplitPlan& plan, const MemoryOptions& options);

/// "tensor 2: a, b", "layers 0-15 on a | 16-31 on b, c": machines at most n_names_max of a stage,
/// stages shortened too when there are many.
std::string describe(const SplitPlan& plan, const ClusterShape& cluster);
/// "2 stages x 4 ranks", "one machine", "tensor 4", "layers 3".
std::string kind_of(const SplitPlan& plan);

}  // namespace recua::cluster
