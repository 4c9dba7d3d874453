#pragma once
/// Models to and from GGUF: the weights to begin with, and those that training made.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "gguf/gguf_file.h"
#include "train/parameters.h"

namespace recua::train {

/// What a model file says of the model. Errors as model::read_hyperparams(), and kUnsupported for
/// experts and for tensors that recua does not train; all name the file.
Result<ModelShape> read_shape(const gguf::GgufFile& file);

/// What a resumed run knows a model by: its name and the beginning of a digest of all its bytes.
/// Time: about a second per gigabyte.
std::string model_identity(const gguf::GgufFile& file);

/// A tensor of the file that has the spec's name and shape. kNotFound: there is none. kCorrupt: its
/// shape is another.
Result<const gguf::TensorInfo*> checked_tensor(const gguf::GgufFile& file, const TensorSpec& spec);

/// Its numbers as f32. Errors as read_params().
Result<void> read_tensor(const gguf::GgufFile& file, const TensorSpec& spec, std::span<float> out);

/// All tensors, of any type, as f32 into params (layout.n_params() of them).
/// kNotFound: a tensor is missing. kCorrupt: its shape is wrong, or a weight is not finite.
Result<void> read_params(const gguf::GgufFile& file, const ParameterLayout& layout,
                         std::span<float> params);

/// Whose metadata a written file has, and whether that is the model that training began with.
struct ModelExport {
  const gguf::GgufFile* source = nullptr;
  bool from_model = false;
};

/// A small GGUF without tensors that holds the hyperparameters: what a worker is told.
std::vector<std::byte> shape_gguf(const ModelShape& shape, const ModelExport& how);

/// Writes the model as F32; `path` appears when it is complete. Metadata: all of `source`, if it is
/// the model that training began with (from_model); else the hyperparameters and the vocabulary of
/// `source`.
/// kIo: cannot write.
Result<void> write_model(const std::filesystem::path& path, const ModelShape& shape,
                         const ParameterLayout& layout, std::span<const float> params,
                         const ModelExport& how);

}  // namespace recua::train
