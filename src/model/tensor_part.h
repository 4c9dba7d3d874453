#pragma once
/// The part of a tensor that one rank of a tensor split has: which one it is, and cutting it out.
///
/// A matrix is cut by rows (its outputs) or by columns (its inputs), that of each expert alike.
/// Columns lie in quantization blocks of 32 or 256: a part has every block that holds one of its
/// columns, and whoever multiplies with it feeds zeros to the others in them. Rows end where the
/// share says.

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"
#include "compute/device.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"
#include "model/share.h"
#include "model/slice.h"
#include "quant/data_type.h"

namespace recua::model {

struct TensorPart {
  std::string name;
  std::size_t n_in = 0;  // The shape of the whole tensor.
  std::size_t n_out = 1;
  std::size_t n_experts = 1;
  Range rows = {};  // Of n_out.
  Range cols = {};  // Of n_in; not widened to blocks, since their size is the type's.

  [[nodiscard]] bool has_all_rows() const { return rows.size() == n_out; }
  [[nodiscard]] bool has_all_cols() const { return cols.size() == n_in; }
  friend bool operator==(const TensorPart&, const TensorPart&) = default;
};

/// What a rank with this share needs of the tensor ("blk.3.attn_q.weight"...). All of it if ranks
/// do not divide it: norms, the router. A shape that is not the model's may give any part of it;
/// loading refuses such a tensor.
TensorPart tensor_part(const HyperParams& hp, const Share& share, std::string name,
                       std::size_t n_in, std::size_t n_out = 1, std::size_t n_experts = 1);

/// The blocks that hold these columns, as columns.
constexpr Range whole_blocks(Range cols, std::size_t block_size) {
  const auto block = static_cast<std::uint32_t>(block_size);
  return {cols.begin / block * block, (cols.end + block - 1) / block * block};
}

/// Bytes of the part in this type.
std::size_t part_bytes(const TensorPart& part, quant::DataType type);

/// Bytes of a file's tensor that a slice keeps, 0 if it does not need it: what a plan counts.
/// tied: as slice_needs() takes it.
std::size_t slice_bytes(const HyperParams& hp, const Slice& slice, bool tied,
                        const gguf::TensorInfo& tensor);

/// kCorrupt: the tensor has another shape, or one that does not fit its type; says what was found
/// and expected. Its bytes are not looked at.
Result<void> check_shape(const compute::TensorBytes& found, std::size_t n_in, std::size_t n_out,
                         std::size_t n_experts);

/// kCorrupt: as check_shape(), or its bytes do not fit the shape.
Result<void> check_tensor(const compute::TensorBytes& found, std::size_t n_in, std::size_t n_out,
                          std::size_t n_experts);

/// The part, as a tensor of its own with the same name. Rows of one matrix stay where they are;
/// anything else is copied to memory that the result owns, part_bytes() of it.
/// kCorrupt: the tensor is not the one that the part is of (check_tensor()). kResourceExhausted.
Result<compute::TensorBytes> cut_tensor(const compute::TensorBytes& whole, const TensorPart& part);

}  // namespace recua::model
