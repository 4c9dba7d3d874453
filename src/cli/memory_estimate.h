#pragma once
/// How much memory a model takes on this machine, known before anything is loaded.
///
/// Counted as the parts are made: weights as the CPU device keeps them, the cache, the working
/// memory of the largest micro-batch. Working memory that a short run never touches is counted all
/// the same. What the device packs depends on its instruction set, as everywhere.

#include <cstdint>
#include <string>

#include "base/result.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"

namespace recua::cli {

struct MemoryEstimate {
  std::uint64_t packed = 0;       // Weights that are copied in a layout of their own, and vectors.
  std::uint64_t mapped = 0;       // Weights that stay where the file is mapped.
  std::uint64_t cache = 0;        // Keys and values of all pages.
  std::uint64_t activations = 0;  // Rows of a micro-batch, and logits.
  std::uint64_t scratch = 0;      // Rounded activations, and what each thread works with.
  std::uint64_t program = 0;      // Code, buffers, and the vocabulary.
  std::uint64_t ctx_token = 0;    // Of cache, what each token of -c takes.
  std::uint32_t n_ctx = 0;

  [[nodiscard]] std::uint64_t total() const {
    return packed + mapped + cache + activations + scratch + program;
  }
  /// What has to be there: pages of a mapped file come back from the file.
  [[nodiscard]] std::uint64_t needed() const { return total() - mapped; }
  /// "2.3 GB: weights 1.2 GB packed and 0 B mapped, cache 1.0 GB for 4096 tokens, ..."
  [[nodiscard]] std::string text() const;
};

/// options as the executor gets them, for a whole model. kInvalidArgument: they cannot be.
Result<MemoryEstimate> estimate_memory(const gguf::GgufFile& file, const model::HyperParams& hp,
                                       const model::SliceOptions& options, std::size_t n_threads,
                                       bool repack, bool with_tokenizer);

/// kResourceExhausted: more than available bytes; names how many are missing and the context that
/// would fit.
Result<void> check_fits(const MemoryEstimate& need, std::uint64_t available);

}  // namespace recua::cli
