#include "model/activations.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "model/tensor_part.h"

namespace recua::model {

Result<void> RowBuffer::allocate(compute::Device& device, const char* what, std::size_t n_rows,
                                 std::size_t n_cols) {
  const std::size_t bytes = n_rows * n_cols * sizeof(float);
  Result<std::unique_ptr<compute::Buffer>> buffer = device.allocate(bytes);
  if (!buffer.ok()) {
    return std::move(buffer).error().within(fmt::format(
        "activations ({}: {} rows of {}; a smaller micro-batch needs less)", what, n_rows, n_cols));
  }
  buffer_ = std::move(buffer).value();
  n_cols_ = n_cols;
  return ok();
}

SplitInput SplitInput::of(Range own, std::size_t n_cols) {
  constexpr std::size_t kBlockMax = 256;  // Of all types; smaller blocks lie within.
  Range held = model::whole_blocks(own, kBlockMax);
  held.end = std::min(held.end, static_cast<std::uint32_t>(n_cols));
  return {.own = own, .held = held};
}

compute::Rows SplitInput::whole_blocks(const RowBuffer& buffer, std::size_t n_rows,
                                       quant::DataType type) const {
  const Range cols = model::whole_blocks(own, quant::traits(type).block_size);
  RECUA_CHECK(cols.begin >= held.begin && cols.end <= held.end);
  return buffer.cols(n_rows, cols.begin - held.begin, cols.size());
}

Result<Activations> Activations::create(compute::Device& device, const HyperParams& hp,
                                        const Share& share, std::size_t n_rows,
                                        std::size_t n_logit_rows) {
  Activations a;
  const std::size_t hidden = hp.hidden_size;
  const std::size_t q_size = std::size_t{share.heads.size()} * hp.head_dim;
  const std::size_t kv_size = std::size_t{share.kv_heads.size()} * hp.head_dim;
  const Share whole = whole_share(hp);
  a.attended_cols = SplitInput::of({share.heads.begin * hp.head_dim, share.heads.end * hp.head_dim},
                                   hp.n_heads * hp.head_dim);
  a.gate_cols = SplitInput::of(share.ffn, whole.ffn.size());
  const std::size_t gate_size = a.gate_cols.held.size();
  RECUA_RETURN_IF_ERROR(a.x.allocate(device, "x", n_rows, hidden));
  RECUA_RETURN_IF_ERROR(a.x_selected.allocate(device, "x", n_rows, hidden));
  RECUA_RETURN_IF_ERROR(a.normed.allocate(device, "norm", n_rows, hidden));
  RECUA_RETURN_IF_ERROR(a.projected.allocate(device, "projection", n_rows, hidden));
  RECUA_RETURN_IF_ERROR(a.q.allocate(device, "q", n_rows, q_size));
  RECUA_RETURN_IF_ERROR(a.k.allocate(device, "k", n_rows, kv_size));
  RECUA_RETURN_IF_ERROR(a.v.allocate(device, "v", n_rows, kv_size));
  RECUA_RETURN_IF_ERROR(
      a.attended.allocate(device, "attention", n_rows, a.attended_cols.held.size()));
  RECUA_RETURN_IF_ERROR(a.rope.allocate(device, "RoPE", n_rows, hp.rope_dim));
  RECUA_RETURN_IF_ERROR(a.rope_selected.allocate(device, "RoPE", n_rows, hp.rope_dim));
  if (hp.n_experts == 0) {
    RECUA_RETURN_IF_ERROR(a.gate.allocate(device, "gate", n_rows, gate_size));
    RECUA_RETURN_IF_ERROR(a.up.allocate(device, "up", n_rows, share.ffn.size()));
  } else {
    const std::size_t n_used = hp.n_experts_used;
    RECUA_RETURN_IF_ERROR(a.gate.allocate(device, "gate", n_rows * n_used, gate_size));
    RECUA_RETURN_IF_ERROR(a.up.allocate(device, "up", n_rows * n_used, share.ffn.size()));
    RECUA_RETURN_IF_ERROR(a.expert_out.allocate(device, "experts", n_rows * n_used, hidden));
    RECUA_RETURN_IF_ERROR(a.router.allocate(device, "router", n_rows, hp.n_experts));
    static_assert(sizeof(std::int32_t) == sizeof(float));
    RECUA_RETURN_IF_ERROR(a.expert_ids.allocate(device, "router", n_rows, n_used));
    RECUA_RETURN_IF_ERROR(a.expert_weights.allocate(device, "router", n_rows, n_used));
  }
  if (n_logit_rows > 0) {
    RECUA_RETURN_IF_ERROR(a.logits.allocate(device, "logits", n_logit_rows, hp.vocab_size));
  }
  if (n_logit_rows > 0 && share.vocab != whole.vocab) {
    RECUA_RETURN_IF_ERROR(
        a.own_logits.allocate(device, "logits", n_logit_rows, share.vocab.size()));
    RECUA_RETURN_IF_ERROR(
        a.gathered_logits.allocate(device, "logits", n_logit_rows, hp.vocab_size));
  }
  return a;
}

Result<void> Activations::allocate_lora(compute::Device& device, std::size_t n_rows,
                                        std::size_t rank, std::size_t n_out) {
  RECUA_RETURN_IF_ERROR(lora_low.allocate(device, "adapter", n_rows, rank));
  return lora_added.allocate(device, "adapter", n_rows, n_out);
}

}  // namespace recua::model
