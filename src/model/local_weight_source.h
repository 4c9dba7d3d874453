#pragma once
/// The tensors of a GGUF file on this machine, used where they are mapped.

#include <memory>

#include "gguf/gguf_file.h"
#include "model/slice_runner.h"

namespace recua::model {

/// Threads: any. What tensor() gives keeps the file alive by itself.
class LocalWeightSource final : public WeightSource {
 public:
  explicit LocalWeightSource(std::shared_ptr<const gguf::GgufFile> file) : file_(std::move(file)) {}

  [[nodiscard]] bool has(std::string_view tensor_name) const override;
  Result<compute::TensorBytes> tensor(std::string_view tensor_name) const override;
  /// Drops the pages of the mapped file; the bytes that are still used come back by themselves.
  void loaded() const override;

 private:
  std::shared_ptr<const gguf::GgufFile> file_;
};

}  // namespace recua::model
