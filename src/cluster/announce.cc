// What a coordinator says about its model: tensors with their hashes, and what each layer costs.

#include <fmt/format.h>

#include "cluster/coordinator.h"
#include "kv/paged_cache.h"
#include "model/slice.h"

namespace recua::cluster {

Result<std::vector<TensorSpec>> announce_tensors(const gguf::GgufFile& file,
                                                 const ChunkHasher& hasher,
                                                 const HashProgress& progress) {
  std::vector<TensorSpec> specs;
  for (std::size_t shard = 0; shard < file.n_shards(); ++shard) {
    std::vector<FileRange> ranges;
    const std::size_t first = specs.size();
    for (const gguf::TensorInfo& tensor : file.tensors()) {
      if (tensor.shard != shard) continue;
      if (tensor.n_dims > 3) {
        return Error{ErrorCode::kUnsupported,
                     fmt::format("{}: tensor {} has {} dimensions, a worker takes at most 3",
                                 file.name(), tensor.name, tensor.n_dims)};
      }
      specs.push_back({.name = std::string(tensor.name),
                       .type = tensor.type,
                       .n_in = tensor.shape[0],
                       .n_out = tensor.shape[1],
                       .n_experts = tensor.shape[2],
                       .bytes = tensor.n_bytes,
                       .file = std::filesystem::path(file.shard_name(shard)).filename().string(),
                       .offset = tensor.offset,
                       .chunks = {}});
      ranges.push_back({tensor.offset, tensor.n_bytes});
    }
    auto digests = hasher.hash(file.shard_name(shard), file.shard_bytes(shard), ranges, progress);
    for (std::size_t i = 0; i < digests.size(); ++i)
      specs[first + i].chunks = std::move(digests[i]);
  }
  return specs;
}

Result<ModelCost> model_cost(const gguf::GgufFile& file, const model::HyperParams& hyperparams,
                             const model::SliceOptions& options) {
  ModelCost cost;
  const std::uint32_t n_layers = hyperparams.n_layers;
  cost.layer_bytes.resize(n_layers);
  const bool tied = file.find("output.weight") == nullptr;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const auto needed_by = [&](std::uint32_t begin, std::uint32_t end) {
      return model::slice_needs({.layer_begin = begin, .layer_end = end, .n_layers = n_layers},
                                tied, tensor.name);
    };
    // A layer's own tensors carry its number; whatever else the ends need is theirs.
    bool in_layer = false;
    if (tensor.name.starts_with("blk.")) {
      for (std::uint32_t layer = 0; layer < n_layers && !in_layer; ++layer) {
        if (!tensor.name.starts_with(fmt::format("blk.{}.", layer))) continue;
        cost.layer_bytes[layer] += tensor.n_bytes;
        in_layer = true;
      }
    }
    if (in_layer) continue;
    if (needed_by(0, n_layers > 1 ? 1 : n_layers)) cost.first_bytes += tensor.n_bytes;
    if (n_layers > 1 && needed_by(n_layers - 1, n_layers)) cost.last_bytes += tensor.n_bytes;
  }
  cost.kv_layer_bytes = kv::KvShape{.n_layers = 1,
                                    .n_kv_heads = hyperparams.n_kv_heads,
                                    .head_dim = hyperparams.head_dim,
                                    .n_pages = options.n_pages,
                                    .page_tokens = options.page_tokens,
                                    .k_type = options.k_type,
                                    .v_type = options.v_type}
                            .bytes();
  return cost;
}

}  // namespace recua::cluster
