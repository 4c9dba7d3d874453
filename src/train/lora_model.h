#pragma once
/// A model whose weights stay as its file has them, and the adapter that is trained on it.
///
/// Memory: the file's mapped pages; f32 copies of norms and biases; nothing for matrices.
/// Threads: never changes after create(); any may read.

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <vector>

#include "gguf/gguf_file.h"
#include "train/frozen.h"
#include "train/lora.h"
#include "train/parameters.h"

namespace recua::train {

class LoraModel {
 public:
  /// file outlives the model; shape is read_shape() of it. kNotFound, kCorrupt: as read_params(),
  /// but the numbers of matrices are not looked at. kInvalidArgument: the rank.
  static Result<LoraModel> create(const gguf::GgufFile& file, const ModelShape& shape,
                                  const LoraOptions& options);

  /// The adapter's numbers: NAME.lora_a and NAME.lora_b of each adapted matrix, in the order of the
  /// model's tensors.
  [[nodiscard]] const ParameterLayout& layout() const { return layout_; }
  [[nodiscard]] const LoraOptions& options() const { return options_; }

  // By a tensor's offset in ParameterLayout(shape), which is how a network knows its tensors.
  [[nodiscard]] const FrozenMatrix& matrix(std::size_t offset) const;
  [[nodiscard]] const float* vector(std::size_t offset) const;

  /// Offsets in layout() of a matrix's pair.
  struct PairOffsets {
    std::size_t a = 0;
    std::size_t b = 0;
  };
  /// nullptr: it is not adapted.
  [[nodiscard]] const PairOffsets* pair(std::size_t offset) const;

  /// Elements of the longest row of a matrix.
  [[nodiscard]] std::size_t n_in_max() const { return n_in_max_; }

 private:
  LoraModel(LoraOptions options, ParameterLayout layout)
      : options_(std::move(options)), layout_(std::move(layout)) {}

  LoraOptions options_;
  ParameterLayout layout_;
  std::map<std::size_t, FrozenMatrix> matrices_;
  std::map<std::size_t, std::vector<float>> vectors_;
  std::map<std::size_t, PairOffsets> pairs_;
  std::size_t n_in_max_ = 0;
};

/// Writes the adapter as F32 in the layout of model/lora.h; `path` appears when it is complete.
/// params: of model.layout(). kIo: cannot write.
Result<void> write_adapter(const std::filesystem::path& path, const ModelShape& shape,
                           const LoraModel& model, std::span<const float> params);

}  // namespace recua::train
