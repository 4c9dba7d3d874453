#include "model/activations.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/bytes.h"
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

namespace {

constexpr std::size_t kLineFloats = 16;  // Buffers begin at lines of 64 bytes.
constexpr std::size_t kApart = SIZE_MAX;

struct NeededRows {
  RowBuffer Activations::* buffer;
  const char* what;
  std::size_t n_rows;
  std::size_t n_cols;
  std::size_t in_up = kApart;  // Where in up's memory, in floats; kApart: in memory of their own.
};

// Lays attention's rows into up's memory, in their order, those that fit. `attended` may have
// columns that must stay zero: attended_apart then.
void share_memory(std::vector<NeededRows>& needed, std::size_t up_floats, bool attended_apart) {
  std::size_t used = 0;
  for (NeededRows& rows : needed) {
    const bool of_attention = rows.buffer == &Activations::q || rows.buffer == &Activations::k ||
                              rows.buffer == &Activations::v ||
                              (rows.buffer == &Activations::attended && !attended_apart);
    const std::size_t floats = align_up(rows.n_rows * rows.n_cols, kLineFloats);
    if (!of_attention || floats > up_floats - used) continue;
    rows.in_up = used;
    used += floats;
  }
}

std::vector<NeededRows> needed_rows(const HyperParams& hp, const Share& share, std::size_t n_rows,
                                    std::size_t n_logit_rows, std::size_t attended_size,
                                    std::size_t gate_size) {
  using A = Activations;
  const std::size_t hidden = hp.hidden_size;
  const std::size_t q_size = std::size_t{share.heads.size()} * hp.head_dim;
  const std::size_t kv_size = std::size_t{share.kv_heads.size()} * hp.head_dim;
  std::vector<NeededRows> out = {
      {&A::x, "x", n_rows, hidden},
      {&A::x_selected, "x", n_rows, hidden},
      {&A::normed, "norm", n_rows, hidden},
      {&A::projected, "projection", n_rows, hidden},
      {&A::q, "q", n_rows, q_size},
      {&A::k, "k", n_rows, kv_size},
      {&A::v, "v", n_rows, kv_size},
      {&A::attended, "attention", n_rows, attended_size},
      {&A::rope, "RoPE", n_rows, hp.rope_dim},
      {&A::rope_selected, "RoPE", n_rows, hp.rope_dim},
  };
  const std::size_t n_used = hp.n_experts == 0 ? 1 : hp.n_experts_used;
  out.push_back({&A::gate, "gate", n_rows * n_used, gate_size});
  out.push_back({&A::up, "up", n_rows * n_used, share.ffn.size()});
  share_memory(out, n_rows * n_used * share.ffn.size(), attended_size != q_size);
  if (hp.n_experts > 0) {
    static_assert(sizeof(std::int32_t) == sizeof(float));
    out.push_back({&A::expert_out, "experts", n_rows * n_used, hidden});
    out.push_back({&A::router, "router", n_rows, hp.n_experts});
    out.push_back({&A::expert_ids, "router", n_rows, n_used});
    out.push_back({&A::expert_weights, "router", n_rows, n_used});
  }
  if (n_logit_rows > 0) out.push_back({&A::logits, "logits", n_logit_rows, hp.vocab_size});
  if (n_logit_rows > 0 && share.vocab != whole_share(hp).vocab) {
    out.push_back({&A::own_logits, "logits", n_logit_rows, share.vocab.size()});
    out.push_back({&A::gathered_logits, "logits", n_logit_rows, hp.vocab_size});
  }
  return out;
}

SplitInput attended_cols_of(const HyperParams& hp, const Share& share) {
  return SplitInput::of({share.heads.begin * hp.head_dim, share.heads.end * hp.head_dim},
                        hp.n_heads * hp.head_dim);
}

SplitInput gate_cols_of(const HyperParams& hp, const Share& share) {
  return SplitInput::of(share.ffn, whole_share(hp).ffn.size());
}

}  // namespace

Result<Activations> Activations::create(compute::Device& device, const HyperParams& hp,
                                        const Share& share, std::size_t n_rows,
                                        std::size_t n_logit_rows) {
  Activations a;
  a.attended_cols = attended_cols_of(hp, share);
  a.gate_cols = gate_cols_of(hp, share);
  std::vector<NeededRows> shared;
  for (const NeededRows& rows : needed_rows(hp, share, n_rows, n_logit_rows,
                                            a.attended_cols.held.size(), a.gate_cols.held.size())) {
    if (rows.in_up != kApart) {
      shared.push_back(rows);
      continue;
    }
    RECUA_RETURN_IF_ERROR((a.*rows.buffer).allocate(device, rows.what, rows.n_rows, rows.n_cols));
  }
  for (const NeededRows& rows : shared) (a.*rows.buffer).share(a.up, rows.in_up, rows.n_cols);
  return a;
}

std::size_t Activations::bytes(const HyperParams& hp, const Share& share, std::size_t n_rows,
                               std::size_t n_logit_rows) {
  std::size_t floats = 0;
  for (const NeededRows& rows :
       needed_rows(hp, share, n_rows, n_logit_rows, attended_cols_of(hp, share).held.size(),
                   gate_cols_of(hp, share).held.size())) {
    if (rows.in_up == kApart) floats += rows.n_rows * rows.n_cols;
  }
  return floats * sizeof(float);
}

Result<void> Activations::allocate_lora(compute::Device& device, std::size_t n_rows,
                                        std::size_t rank, std::size_t n_out) {
  RECUA_RETURN_IF_ERROR(lora_low.allocate(device, "adapter", n_rows, rank));
  return lora_added.allocate(device, "adapter", n_rows, n_out);
}

}  // namespace recua::model
