#pragma once
/// A worker's weights: each tensor of its slice from its own copy of the file, from its cache of
/// chunks, or from the coordinator, every byte verified by hash before it is used.
///
/// Use: begin() looks at disk, then missing() says what to ask for, supply() takes the answers, and
/// finish() gives the WeightSource. Blocking; one thread at a time.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "cluster/chunks.h"
#include "model/slice_runner.h"
#include "quant/data_type.h"

namespace recua::cluster {

/// One tensor as the coordinator announces it.
struct TensorSpec {
  std::string name;
  quant::DataType type = quant::DataType::kF32;
  std::uint64_t n_in = 0;
  std::uint64_t n_out = 1;
  std::uint64_t n_experts = 1;
  std::uint64_t bytes = 0;
  std::string file;          // Name without folders, as the coordinator's copy is called.
  std::uint64_t offset = 0;  // In that file.
  std::vector<Digest> chunks = {};

  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

/// kProtocol: sizes, names or chunk counts that cannot be right; names the tensor.
Result<void> check_spec(const TensorSpec& spec);

struct ChunkRef {
  std::uint32_t tensor = 0;
  std::uint32_t chunk = 0;
};

/// Where the bytes of a slice came from.
struct SourceCounts {
  std::uint64_t from_file = 0;
  std::uint64_t from_cache = 0;
  std::uint64_t fetched = 0;
};

class SliceWeights {
 public:
  /// models_dir empty: no own files. kResourceExhausted: no memory for what is not in a file.
  static Result<std::unique_ptr<SliceWeights>> begin(std::vector<TensorSpec> tensors,
                                                     const std::filesystem::path& models_dir,
                                                     const ChunkHasher& hasher, ChunkStore store,
                                                     const HashProgress& progress = {});

  [[nodiscard]] std::span<const ChunkRef> missing() const { return missing_; }
  [[nodiscard]] const TensorSpec& spec(const ChunkRef& ref) const {
    return tensors_[ref.tensor].spec;
  }
  /// kCorrupt: the bytes do not have the announced hash.
  Result<void> supply(const ChunkRef& ref, std::span<const std::byte> bytes);
  /// After every missing chunk was supplied.
  std::unique_ptr<model::WeightSource> finish() &&;

  [[nodiscard]] const SourceCounts& counts() const { return counts_; }

 private:
  struct Tensor {
    TensorSpec spec;
    std::span<const std::byte> bytes = {};
    std::span<std::byte> writable = {};      // Empty when bytes lie in a file.
    std::shared_ptr<const void> owner = {};  // The mapped file or the buffer.
  };

  explicit SliceWeights(ChunkStore store) : store_(std::move(store)) {}
  Result<void> place(std::uint32_t index, const std::shared_ptr<const MappedFile>& file,
                     const std::vector<Digest>& local);

  ChunkStore store_;
  std::vector<Tensor> tensors_;
  std::vector<ChunkRef> missing_;
  SourceCounts counts_;
};

}  // namespace recua::cluster
