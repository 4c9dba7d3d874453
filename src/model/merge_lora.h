#pragma once
/// Adapters made part of a model's weights, for engines that take none and for quantizing again.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>

#include "base/result.h"
#include "gguf/gguf_file.h"

namespace recua::model {

struct MergeResult {
  std::size_t n_merged = 0;   // Matrices.
  std::uint64_t n_bytes = 0;  // Of the file.
};

/// done and total count tensors.
using MergeProgress = std::function<void(std::size_t done, std::size_t total)>;

/// Writes a model that an adapter was added to (model/lora.h) as one without: adapted matrices
/// become W + B A in F32, all other tensors and the metadata stay as they are. One file, which
/// appears when it is complete. Memory: about 32 MB beside the mapped input. n_threads >= 1.
/// kCorrupt: a weight is NaN or infinite afterwards; names the tensor. kIo: the output.
Result<MergeResult> write_merged(const gguf::GgufFile& model, const std::filesystem::path& path,
                                 std::size_t n_threads, const MergeProgress& progress = {});

}  // namespace recua::model
