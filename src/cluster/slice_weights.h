#pragma once
/// A worker's weights: each tensor of its slice from its own copy of the file, from its cache of
/// chunks, or from the coordinator, every byte verified by hash before it is used.
///
/// A rank has a part of each tensor (model/tensor_part.h). Only chunks that hold some of it are
/// looked at or asked for, and what is not in a file is kept as the part alone.
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
#include "model/tensor_part.h"
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

/// The part of a tensor that a slice has.
using PartOf = std::function<model::TensorPart(const TensorSpec&)>;
/// All of each tensor.
model::TensorPart whole_part(const TensorSpec& spec);

/// The chunks of a tensor that hold some of the part, in order.
std::vector<std::uint32_t> needed_chunks(const TensorSpec& spec, const model::TensorPart& part);
/// Their bytes.
std::uint64_t needed_bytes(const TensorSpec& spec, const model::TensorPart& part);

/// Where the bytes of a slice came from, counted by chunks.
struct SourceCounts {
  std::uint64_t from_file = 0;
  std::uint64_t from_cache = 0;
  std::uint64_t fetched = 0;
};

/// A file of ours that is not the coordinator's of the same name.
struct FileDifference {
  std::string file;         // Its path.
  std::string tensor = {};  // The first one that differs or is not there.
  std::uint64_t bytes = 0;  // Of chunks that the slice needs and that differ or are not there.
};
/// A sentence without its end.
std::string to_string(const FileDifference& difference);

class SliceWeights {
 public:
  /// models_dir empty: no own files. kResourceExhausted: no memory for what is not in a file.
  static Result<std::unique_ptr<SliceWeights>> begin(std::vector<TensorSpec> tensors,
                                                     const std::filesystem::path& models_dir,
                                                     const ChunkHasher& hasher, ChunkStore store,
                                                     const HashProgress& progress = {},
                                                     const PartOf& part_of = whole_part);

  [[nodiscard]] std::span<const ChunkRef> missing() const { return missing_; }
  [[nodiscard]] const TensorSpec& spec(const ChunkRef& ref) const {
    return tensors_[ref.tensor].spec;
  }
  /// kCorrupt: the bytes do not have the announced hash.
  Result<void> supply(const ChunkRef& ref, std::span<const std::byte> bytes);
  /// After every missing chunk was supplied.
  std::unique_ptr<model::WeightSource> finish() &&;

  [[nodiscard]] const SourceCounts& counts() const { return counts_; }
  /// Of the files in models_dir.
  [[nodiscard]] std::span<const FileDifference> differences() const { return differences_; }

 private:
  struct Tensor {
    TensorSpec spec;
    model::TensorPart part;
    std::vector<std::uint32_t> needed;       // Chunks.
    std::span<const std::byte> bytes = {};   // The whole tensor, or the part when it is writable.
    std::span<std::byte> writable = {};      // Empty when bytes lie in a file.
    std::shared_ptr<const void> owner = {};  // The mapped file or the buffer.
  };

  explicit SliceWeights(ChunkStore store) : store_(std::move(store)) {}
  /// local: digests of the needed chunks in our copy of the file; empty: it is not there.
  Result<void> place(std::uint32_t index, const std::shared_ptr<const MappedFile>& file,
                     std::span<const Digest> local);
  /// Where a chunk's bytes are put first.
  std::span<std::byte> room_for(const Tensor& tensor, std::uint32_t chunk);
  /// Takes the part out of a chunk that was put there.
  void keep(const Tensor& tensor, std::uint32_t chunk, std::span<const std::byte> bytes);

  ChunkStore store_;
  std::vector<Tensor> tensors_;
  std::vector<std::byte> scratch_;  // A chunk of which only a part is kept.
  std::vector<ChunkRef> missing_;
  std::vector<FileDifference> differences_;
  SourceCounts counts_;
};

}  // namespace recua::cluster
