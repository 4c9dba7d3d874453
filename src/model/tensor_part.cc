#include "model/tensor_part.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "model/lora.h"
#include "model/part_layout.h"
#include "sys/aligned_buffer.h"

namespace recua::model {
namespace {

enum class Axis { kNone, kRows, kCols };
struct Cut {
  Axis axis = Axis::kNone;
  Range range = {};
};

Range times(Range heads, std::uint32_t head_dim) {
  return {heads.begin * head_dim, heads.end * head_dim};
}

Range within(Range range, Range whole) {
  return {std::min(range.begin, whole.end), std::min(range.end, whole.end)};
}

/// A bias is a row: what cuts its matrix by rows cuts it by columns.
Cut cut_of(const HyperParams& hp, const Share& share, std::string_view name) {
  // Of an adapter's two matrices one has the inputs of the model's, the other its outputs.
  for (const auto& [ending, axis] :
       {std::pair(kLoraA, Axis::kCols), std::pair(kLoraB, Axis::kRows)}) {
    if (!name.ends_with(ending)) continue;
    name.remove_suffix(ending.size());
    const Cut cut = cut_of(hp, share, name);
    return cut.axis == axis ? cut : Cut{};
  }
  if (name == "token_embd.weight" || name == "output.weight") return {Axis::kRows, share.vocab};
  if (!name.starts_with("blk.")) return {};
  const std::size_t dot = name.find('.', 4);
  if (dot == std::string_view::npos) return {};
  const std::string_view own = name.substr(dot + 1);
  const Range q = times(share.heads, hp.head_dim);
  const Range kv = times(share.kv_heads, hp.head_dim);
  if (own == "attn_q.weight") return {Axis::kRows, q};
  if (own == "attn_q.bias") return {Axis::kCols, q};
  if (own == "attn_k.weight" || own == "attn_v.weight") return {Axis::kRows, kv};
  if (own == "attn_k.bias" || own == "attn_v.bias") return {Axis::kCols, kv};
  if (own == "attn_output.weight") return {Axis::kCols, q};
  if (own == "ffn_gate.weight" || own == "ffn_up.weight" || own == "ffn_gate_exps.weight" ||
      own == "ffn_up_exps.weight") {
    return {Axis::kRows, share.ffn};
  }
  if (own == "ffn_down.weight" || own == "ffn_down_exps.weight") return {Axis::kCols, share.ffn};
  return {};
}

std::string shape_text(std::size_t n_in, std::size_t n_out, std::size_t n_experts) {
  if (n_experts != 1) return fmt::format("[{}, {}, {}]", n_in, n_out, n_experts);
  if (n_out != 1) return fmt::format("[{}, {}]", n_in, n_out);
  return fmt::format("[{}]", n_in);
}

}  // namespace

TensorPart tensor_part(const HyperParams& hp, const Share& share, std::string name,
                       std::size_t n_in, std::size_t n_out, std::size_t n_experts) {
  const Cut cut = cut_of(hp, share, name);
  TensorPart part = {.name = std::move(name),
                     .n_in = n_in,
                     .n_out = n_out,
                     .n_experts = n_experts,
                     .rows = {0, static_cast<std::uint32_t>(n_out)},
                     .cols = {0, static_cast<std::uint32_t>(n_in)}};
  if (cut.axis == Axis::kRows) part.rows = within(cut.range, part.rows);
  if (cut.axis == Axis::kCols) part.cols = within(cut.range, part.cols);
  return part;
}

std::size_t part_bytes(const TensorPart& part, quant::DataType type) {
  const Range cols = whole_blocks(part.cols, quant::traits(type).block_size);
  return quant::row_bytes(type, cols.size()) * part.rows.size() * part.n_experts;
}

std::size_t slice_bytes(const HyperParams& hp, const Slice& slice, bool tied,
                        const gguf::TensorInfo& tensor) {
  if (!slice_needs(slice, tied, tensor.name)) return 0;
  const TensorPart part = tensor_part(hp, own_share(slice, hp), std::string(tensor.name),
                                      tensor.shape[0], tensor.shape[1], tensor.shape[2]);
  if (part.has_all_rows() && part.has_all_cols()) return tensor.n_bytes;
  return part_bytes(part, tensor.type);
}

Result<void> check_shape(const compute::TensorBytes& found, std::size_t n_in, std::size_t n_out,
                         std::size_t n_experts) {
  if (found.n_in != n_in || found.n_out != n_out || found.n_experts != n_experts) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor {} has shape {}; expected {}", found.name,
                             shape_text(found.n_in, found.n_out, found.n_experts),
                             shape_text(n_in, n_out, n_experts))};
  }
  const quant::DataTypeTraits type = quant::traits(found.type);
  if (found.n_in % type.block_size != 0) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor {} has rows of {} elements; expected a multiple of {}, the "
                             "block of type {}",
                             found.name, found.n_in, type.block_size, type.name)};
  }
  return ok();
}

Result<void> check_tensor(const compute::TensorBytes& found, std::size_t n_in, std::size_t n_out,
                          std::size_t n_experts) {
  RECUA_RETURN_IF_ERROR(check_shape(found, n_in, n_out, n_experts));
  // Bounded hyperparameters: at most 2^40 elements, so this cannot overflow.
  const std::size_t bytes =
      quant::row_bytes(found.type, found.n_in) * found.n_out * found.n_experts;
  if (found.bytes.size() != bytes) {
    return Error{
        ErrorCode::kCorrupt,
        fmt::format("tensor {} has {} bytes; expected {} for shape {} in {}", found.name,
                    found.bytes.size(), bytes, shape_text(found.n_in, found.n_out, found.n_experts),
                    quant::traits(found.type).name)};
  }
  return ok();
}

Result<compute::TensorBytes> cut_tensor(const compute::TensorBytes& whole, const TensorPart& part) {
  RECUA_RETURN_IF_ERROR(check_tensor(whole, part.n_in, part.n_out, part.n_experts));
  if (part.has_all_rows() && part.has_all_cols()) return whole;
  const quant::DataTypeTraits type = quant::traits(whole.type);
  const Range cols = whole_blocks(part.cols, type.block_size);
  const std::size_t row_bytes = quant::row_bytes(whole.type, whole.n_in);
  compute::TensorBytes out = {.name = whole.name,
                              .type = whole.type,
                              .n_in = cols.size(),
                              .n_out = part.rows.size(),
                              .n_experts = whole.n_experts,
                              .bytes = {},
                              .owner = whole.owner,
                              .in_mapped_file = whole.in_mapped_file};
  if (cols.size() == whole.n_in && whole.n_experts == 1) {
    out.bytes = whole.bytes.subspan(part.rows.begin * row_bytes, part.rows.size() * row_bytes);
    return out;
  }
  Result<sys::AlignedBuffer> allocated = sys::AlignedBuffer::allocate(part_bytes(part, whole.type));
  if (!allocated.ok()) {
    return std::move(allocated).error().within(
        fmt::format("tensor {}, {} of its {} rows and {} of its {} columns", whole.name, out.n_out,
                    whole.n_out, out.n_in, whole.n_in));
  }
  auto memory = std::make_shared<sys::AlignedBuffer>(std::move(allocated).value());
  PartLayout(part, whole.type)
      .for_each_piece(0, whole.bytes.size(),
                      [&](std::size_t in_whole, std::size_t in_part, std::size_t bytes) {
                        std::memcpy(memory->data() + in_part, whole.bytes.data() + in_whole, bytes);
                      });
  out.bytes = memory->bytes();
  out.owner = std::move(memory);
  out.in_mapped_file = false;
  return out;
}

}  // namespace recua::model
