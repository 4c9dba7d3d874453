#pragma once
/// A model file in, the same model with other weight types out: the work under `recua quantize`.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cli/quantize_mix.h"
#include "gguf/gguf_file.h"

namespace recua::cli {

/// What becomes of one tensor. tensor points into the GgufFile.
struct TensorPlan {
  const gguf::TensorInfo* tensor = nullptr;
  quant::DataType type = quant::DataType::kF32;
  bool fell_back = false;  // The mix wanted another type, but the rows are not whole blocks of it.
  [[nodiscard]] std::uint64_t n_bytes() const {
    return quant::row_bytes(type, tensor->shape[0]) * tensor->n_rows();
  }
};

/// One entry per tensor, in the order of the file.
std::vector<TensorPlan> plan_types(const gguf::GgufFile& file, const QuantizeMix& mix, bool pure);

/// done and total count bytes of the input.
using QuantizeProgress =
    std::function<void(std::uint64_t done, std::uint64_t total, std::string_view tensor_name)>;

/// Writes the planned model to path (whole or not at all): same metadata but for the file type, one
/// file even when the input was split. Memory: about 64 MB beside the mapped input. n_threads >= 1.
/// kCorrupt: a weight is NaN or infinite; names tensor, row and column. kIo: the output.
Result<void> quantize_model(const gguf::GgufFile& file, std::span<const TensorPlan> plan,
                            const QuantizeMix& mix, const std::filesystem::path& path,
                            std::size_t n_threads, const QuantizeProgress& progress = {});

}  // namespace recua::cli
