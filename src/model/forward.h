#pragma once
/// The forward pass of every architecture, written once on compute::Device.
///
///   x = token_embd[id]
///   per layer:  h = norm(x);  q, k, v = Wq h (+ bias), Wk h, Wv h;  q, k = rope(norm(q)), ...
///               x = x + Wo attention(q, cache of k and v)
///               h = norm(x);  x = x + Wdown (silu(Wgate h) * Wup h)      or the same with experts
///   logits = Woutput norm(x)
/// A matrix W with an adapter (model/lora.h) gives W x + B (A x) instead of W x.
///
/// A rank of a tensor split computes with its own heads, columns and tokens (model/share.h). What
/// the matrices Wo and Wdown give is then a part of the sum over ranks, and so is an embedding,
/// which only one rank has: three kinds of all-reduce, after each of which all ranks have the same
/// x, to the bit. Logits are gathered. Every rank makes the same calls with the same batch.
///
/// Over slow links a large micro-batch goes in two halves, and the sums of one travel while the
/// other is computed: docs/decisions/0017-prompts-in-two-halves.md.
///
/// In the last layer of the model all rows leave their keys and values in the cache, but only the
/// rows that are asked for go on: nobody looks at the others.
/// Source: Touvron et al. 2023 (Llama); Jiang et al. 2024 (Mixtral); Qwen technical reports.
/// Threads: the one compute thread of the slice.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "compute/device.h"
#include "kv/paged_cache.h"
#include "model/activations.h"
#include "model/communicator.h"
#include "model/executor.h"
#include "model/hyperparams.h"
#include "model/slice.h"
#include "model/weights.h"

namespace recua::model {

/// A micro-batch as the operators want it. One entry per row, in order, except page_tables (one per
/// sequence) and output_rows (ascending row numbers).
struct ForwardRows {
  std::span<const TokenId> ids;
  std::span<const std::uint32_t> positions;
  std::span<const std::uint64_t> slots;  // See Device::store_kv.
  std::span<const compute::AttentionRow> attention;
  std::span<const std::span<const std::uint32_t>> page_tables;
  std::span<const std::uint32_t> output_rows;
};

/// How many rows of logits are computed at a time: enough to read the output matrix seldom.
inline constexpr std::size_t kLogitRows = 64;
/// Each half of a micro-batch that is computed while the sums of the other travel has at least so
/// many rows: products read their weights once per half.
inline constexpr std::size_t kHalfRowsMin = 64;

class ForwardPass {
 public:
  /// Everything is borrowed and outlives the pass.
  ForwardPass(compute::Device& device, const HyperParams& hp, const Slice& slice,
              const SliceWeights& weights, const kv::PagedCache& cache, const Activations& memory,
              Communicator& communicator);

  /// Runs the slice's layers. input and output as SliceRunner::run() takes them. Errors are the
  /// communicator's.
  Result<void> run_layers(const ForwardRows& rows, compute::Rows input, compute::Rows output);

  /// After run_layers() on the last slice: the logits that this rank has (of its tokens) of the
  /// outputs [begin, begin + n), n at most kLogitRows. Valid until the next call.
  compute::Rows own_logits(std::size_t begin, std::size_t n);
  /// All ranks' logits of the n rows that own_logits() gave, after sync().
  Result<compute::Rows> gather_logits(std::size_t n);

 private:
  /// Rows of the micro-batch that go through an operator together.
  struct RowRange {
    std::size_t begin = 0;
    std::size_t size = 0;
  };
  /// A sum over ranks that has begun, and what it is for.
  struct Pending {
    RowRange part;
    compute::Rows x, delta, sum;
  };

  std::span<const RowRange> parts_of(std::size_t n);
  static compute::Rows rows_of(const RowBuffer& buffer, const RowRange& part);
  Result<void> begin_part(const RowRange& part);
  Result<void> attention(const LayerWeights& layer, std::size_t index, const ForwardRows& rows,
                         const RowRange& part, compute::Rows x);
  Result<compute::Rows> attention_of_outputs(const LayerWeights& layer, std::size_t index,
                                             const ForwardRows& rows, compute::Rows x);
  Result<void> project_rows(const LayerWeights& layer, std::size_t index, const ForwardRows& rows,
                            const RowRange& part, compute::Rows x, bool with_queries);
  Result<void> attend(const LayerWeights& layer, std::size_t index, const ForwardRows& rows,
                      std::span<const compute::AttentionRow> attention_rows, compute::Rows normed,
                      compute::Rows rope, compute::Rows out);
  Result<void> feed_forward(const LayerWeights& layer, const RowRange& part, compute::Rows x,
                            compute::Rows sum);
  void experts(const LayerWeights& layer, compute::Rows normed, compute::Rows out);
  Result<void> sum_over_ranks(compute::Rows rows);
  Result<void> add_over_ranks(const RowRange& part, compute::Rows x, compute::Rows delta,
                              compute::Rows sum);
  Result<void> settle();
  Result<void> help_sums();
  void matmul_of_share(const compute::Weight& w, const Lora& lora, const RowBuffer& x,
                       const SplitInput& cols, compute::Rows out);
  void adapt(const Lora& lora, compute::Rows x, compute::Rows out);

  compute::Device& device_;
  const HyperParams& hp_;
  const Slice& slice_;
  const SliceWeights& weights_;
  const kv::PagedCache& cache_;
  const Activations& a_;
  Communicator& communicator_;
  const Share share_;
  std::vector<std::size_t> gather_counts_;
  std::vector<compute::AttentionRow> selected_;
  std::array<RowRange, 2> parts_;
  std::optional<Pending> pending_;  // The newest sum over ranks, until settle().
  compute::Rows final_;             // The residual stream of the outputs after the last layer.
};

}  // namespace recua::model
