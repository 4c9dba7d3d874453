#include "model/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "model/lora.h"
#include "model/rope.h"
#include "model/tensor_part.h"
#include "quant/dequantize.h"

// First a list of slots is made: the name and shape of each tensor that the slice needs, and the
// pointer it fills, and the slice's part of it. Then all are looked up and checked, then all are
// loaded.

namespace recua::model {

Result<quant::DataType> WeightSource::check(const TensorPart& part) const {
  RECUA_ASSIGN_OR_RETURN(const compute::TensorBytes whole, tensor(part.name));
  RECUA_RETURN_IF_ERROR(check_tensor(whole, part.n_in, part.n_out, part.n_experts));
  return whole.type;
}

Result<std::size_t> WeightSource::n_rows(std::string_view tensor_name) const {
  RECUA_ASSIGN_OR_RETURN(const compute::TensorBytes whole, tensor(tensor_name));
  return whole.n_out;
}

Result<compute::TensorBytes> WeightSource::part(const TensorPart& part) const {
  RECUA_ASSIGN_OR_RETURN(const compute::TensorBytes whole, tensor(part.name));
  return cut_tensor(whole, part);
}

namespace {

using compute::TensorBytes;

struct Slot {
  TensorPart part;
  Matrix* matrix = nullptr;  // One of the two.
  Vector* vector = nullptr;
  bool is_adapter = false;
};

Result<void> check_type(const Slot& slot, quant::DataType type) {
  // Ranks cut them anywhere, not at blocks. (model/lora.h reads any type and makes them F32.)
  if (slot.is_adapter && type != quant::DataType::kF32) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tensor {} of an adapter is of type {}, need F32: give the adapter's "
                             "file to --lora",
                             slot.part.name, quant::traits(type).name)};
  }
  if (slot.vector == nullptr || quant::traits(type).block_size == 1) return ok();
  return Error{ErrorCode::kCorrupt, fmt::format("tensor {} is of type {}; expected F32, F16 or "
                                                "BF16, as norms and biases are never quantized",
                                                slot.part.name, quant::traits(type).name)};
}

class SlotList {
 public:
  SlotList(const HyperParams& hp, const Share& share, const WeightSource& source)
      : hp_(hp), share_(share), source_(source) {}

  void matrix(std::string name, std::size_t n_in, std::size_t n_out, Matrix& out,
              std::size_t n_experts = 1) {
    slots_.push_back({.part = tensor_part(hp_, share_, std::move(name), n_in, n_out, n_experts),
                      .matrix = &out});
  }
  /// A matrix that an adapter may change.
  void adapted(const std::string& name, std::size_t n_in, std::size_t n_out, Matrix& out,
               Lora& lora) {
    matrix(name, n_in, n_out, out);
    const auto rank = source_.n_rows(name + std::string(kLoraA));
    if (!rank.ok()) return;
    // A larger one is refused when its shape is checked.
    const std::size_t allowed = std::min(*rank, kLoraRankMax);
    matrix(name + std::string(kLoraA), n_in, allowed, lora.a);
    slots_.back().is_adapter = true;
    matrix(name + std::string(kLoraB), allowed, n_out, lora.b);
    slots_.back().is_adapter = true;
  }
  void vector(std::string name, std::size_t n, Vector& out, Presence presence = Presence::kAlways) {
    if (presence == Presence::kNever) return;
    if (presence == Presence::kOptional && !source_.has(name)) return;
    slots_.push_back({.part = tensor_part(hp_, share_, std::move(name), n), .vector = &out});
  }

  void layer(std::uint32_t index, LayerWeights& out) {
    const std::string prefix = fmt::format("blk.{}.", index);
    const Architecture& arch = *hp_.architecture;
    const std::size_t hidden = hp_.hidden_size;
    const std::size_t q_size = std::size_t{hp_.n_heads} * hp_.head_dim;
    const std::size_t kv_size = std::size_t{hp_.n_kv_heads} * hp_.head_dim;
    vector(prefix + "attn_norm.weight", hidden, out.attn_norm);
    adapted(prefix + "attn_q.weight", hidden, q_size, out.q, out.q_lora);
    adapted(prefix + "attn_k.weight", hidden, kv_size, out.k, out.k_lora);
    adapted(prefix + "attn_v.weight", hidden, kv_size, out.v, out.v_lora);
    vector(prefix + "attn_q.bias", q_size, out.q_bias, arch.qkv_bias);
    vector(prefix + "attn_k.bias", kv_size, out.k_bias, arch.qkv_bias);
    vector(prefix + "attn_v.bias", kv_size, out.v_bias, arch.qkv_bias);
    vector(prefix + "attn_q_norm.weight", hp_.head_dim, out.q_norm, arch.qk_norm);
    vector(prefix + "attn_k_norm.weight", hp_.head_dim, out.k_norm, arch.qk_norm);
    adapted(prefix + "attn_output.weight", q_size, hidden, out.attn_output, out.attn_output_lora);
    vector(prefix + "ffn_norm.weight", hidden, out.ffn_norm);
    if (hp_.n_experts == 0) {
      adapted(prefix + "ffn_gate.weight", hidden, hp_.ffn_size, out.gate, out.gate_lora);
      adapted(prefix + "ffn_up.weight", hidden, hp_.ffn_size, out.up, out.up_lora);
      adapted(prefix + "ffn_down.weight", hp_.ffn_size, hidden, out.down, out.down_lora);
    } else {
      const std::size_t ffn = hp_.expert_ffn_size;
      matrix(prefix + "ffn_gate_inp.weight", hidden, hp_.n_experts, out.router);
      matrix(prefix + "ffn_gate_exps.weight", hidden, ffn, out.gate, hp_.n_experts);
      matrix(prefix + "ffn_up_exps.weight", hidden, ffn, out.up, hp_.n_experts);
      matrix(prefix + "ffn_down_exps.weight", ffn, hidden, out.down, hp_.n_experts);
    }
  }

  /// Tensors that a layer may have in other engines' files, and that would change the result.
  Result<void> check_unsupported(std::uint32_t index) const {
    constexpr std::array kEndings = {"attn_norm.bias",
                                     "ffn_norm.bias",
                                     "attn_output.bias",
                                     "ffn_gate.bias",
                                     "ffn_up.bias",
                                     "ffn_down.bias",
                                     "ffn_gate_shexp.weight",
                                     "ffn_up_shexp.weight",
                                     "ffn_down_shexp.weight",
                                     "attn_qkv.weight",
                                     "ffn_gate_inp_shexp.weight",
                                     "ffn_gate.0.weight"};
    for (const char* ending : kEndings) {
      RECUA_RETURN_IF_ERROR(refuse(fmt::format("blk.{}.{}", index, ending)));
    }
    return ok();
  }
  /// The same for what comes behind the last layer.
  Result<void> check_unsupported_output() const {
    RECUA_RETURN_IF_ERROR(refuse("output_norm.bias"));
    return refuse("output.bias");
  }

  Result<void> load(compute::Device& device, const LoadProgress& progress) const {
    std::size_t total = 0;
    for (const Slot& slot : slots_) {
      RECUA_ASSIGN_OR_RETURN(const quant::DataType type, source_.check(slot.part));
      RECUA_RETURN_IF_ERROR(check_type(slot, type));
      total += part_bytes(slot.part, type);
    }
    std::size_t done = 0;
    for (const Slot& slot : slots_) {
      RECUA_ASSIGN_OR_RETURN(TensorBytes found, source_.part(slot.part));
      const std::size_t bytes = found.bytes.size();
      if (slot.matrix != nullptr) {
        RECUA_ASSIGN_OR_RETURN(*slot.matrix, device.load_weight(std::move(found)));
      } else {
        RECUA_ASSIGN_OR_RETURN(*slot.vector, device.load_vector(found));
      }
      done += bytes;
      if (progress) progress(done, total);
    }
    return ok();
  }

 private:
  Result<void> refuse(std::string_view name) const {
    if (!source_.has(name)) return ok();
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tensor {}: recua cannot use it in a model of type {}; a newer "
                             "conversion of the model may not have it",
                             name, hp_.architecture->name)};
  }

  const HyperParams& hp_;
  const Share& share_;
  const WeightSource& source_;
  std::vector<Slot> slots_;
};

/// The divisors of Llama 3's RoPE scaling; empty if the model has none.
Result<std::vector<float>> read_rope_divisors(const HyperParams& hp, const WeightSource& source) {
  constexpr std::string_view kName = "rope_freqs.weight";
  if (!source.has(kName)) return std::vector<float>{};
  Vector unused;
  const Slot slot = {.part = tensor_part(hp, whole_share(hp), std::string(kName), hp.rope_dim / 2),
                     .vector = &unused};
  RECUA_ASSIGN_OR_RETURN(const TensorBytes tensor, source.part(slot.part));
  RECUA_RETURN_IF_ERROR(check_type(slot, tensor.type));
  std::vector<float> divisors(slot.part.n_in);
  quant::dequantize_row(tensor.type, tensor.bytes.data(), divisors.size(), divisors.data());
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    if (std::isfinite(divisors[i]) && divisors[i] > 0.0F) continue;
    return Error{ErrorCode::kCorrupt, fmt::format("tensor {} has {} at index {}; expected a number "
                                                  "above 0",
                                                  kName, divisors[i], i)};
  }
  return divisors;
}

Result<void> load_rope(compute::Device& device, const HyperParams& hp, const WeightSource& source,
                       SliceWeights& out) {
  RECUA_ASSIGN_OR_RETURN(const std::vector<float> divisors, read_rope_divisors(hp, source));
  const RopeFrequencies rope = rope_frequencies(hp, divisors);
  const TensorBytes bytes = {.name = "RoPE frequencies",
                             .type = quant::DataType::kF32,
                             .n_in = rope.inv_freq.size(),
                             .bytes = std::as_bytes(std::span(rope.inv_freq)),
                             .owner = nullptr};
  RECUA_ASSIGN_OR_RETURN(out.inv_freq, device.load_vector(bytes));
  out.rope_magnitude = rope.magnitude;
  return ok();
}

}  // namespace

LoraSize lora_size(const SliceWeights& weights) {
  LoraSize size;
  for (const LayerWeights& layer : weights.layers) {
    for (const Lora* lora : {&layer.q_lora, &layer.k_lora, &layer.v_lora, &layer.attn_output_lora,
                             &layer.gate_lora, &layer.up_lora, &layer.down_lora}) {
      if (lora->a == nullptr) continue;
      size.rank = std::max(size.rank, lora->a->n_out());
      size.n_out = std::max(size.n_out, lora->b->n_out());
    }
  }
  return size;
}

Result<SliceWeights> load_weights(compute::Device& device, const HyperParams& hp,
                                  const WeightSource& source, const Slice& slice,
                                  const LoadProgress& progress) {
  SliceWeights out;
  out.layers.resize(slice.layer_end - slice.layer_begin);  // Slots point into it from here on.
  const bool tied = !source.has("output.weight");
  const Share share = own_share(slice, hp);
  SlotList slots(hp, share, source);
  if (slice_needs(slice, tied, "token_embd.weight")) {
    slots.matrix("token_embd.weight", hp.hidden_size, hp.vocab_size, out.token_embd);
  }
  for (std::uint32_t i = slice.layer_begin; i < slice.layer_end; ++i) {
    RECUA_RETURN_IF_ERROR(slots.check_unsupported(i));
    slots.layer(i, out.layers[i - slice.layer_begin]);
  }
  if (slice.is_last()) {
    RECUA_RETURN_IF_ERROR(slots.check_unsupported_output());
    slots.vector("output_norm.weight", hp.hidden_size, out.output_norm);
    if (!tied) slots.matrix("output.weight", hp.hidden_size, hp.vocab_size, out.output);
  }
  RECUA_RETURN_IF_ERROR(load_rope(device, hp, source, out));
  RECUA_RETURN_IF_ERROR(slots.load(device, progress));
  source.loaded();
  return out;
}

}  // namespace recua::model
