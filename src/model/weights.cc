#include "model/weights.h"

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "model/rope.h"
#include "quant/dequantize.h"

// First a list of slots is made: the name and shape of each tensor that the slice needs, and the
// pointer it fills. Then all are looked up and checked, then all are loaded.

namespace recua::model {
namespace {

using compute::TensorBytes;

struct Slot {
  std::string name;
  std::size_t n_in = 0;
  std::size_t n_out = 1;
  std::size_t n_experts = 1;
  Matrix* matrix = nullptr;  // One of the two.
  Vector* vector = nullptr;
};

std::string shape_text(std::size_t n_in, std::size_t n_out, std::size_t n_experts) {
  if (n_experts != 1) return fmt::format("[{}, {}, {}]", n_in, n_out, n_experts);
  if (n_out != 1) return fmt::format("[{}, {}]", n_in, n_out);
  return fmt::format("[{}]", n_in);
}

/// Shape, type and byte count of what a source gave, against what the slot needs.
Result<void> check_tensor(const Slot& slot, const TensorBytes& found) {
  if (found.n_in != slot.n_in || found.n_out != slot.n_out || found.n_experts != slot.n_experts) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor {} has shape {}; expected {}", slot.name,
                             shape_text(found.n_in, found.n_out, found.n_experts),
                             shape_text(slot.n_in, slot.n_out, slot.n_experts))};
  }
  const quant::DataTypeTraits type = quant::traits(found.type);
  if (slot.vector != nullptr && type.block_size != 1) {
    return Error{ErrorCode::kCorrupt, fmt::format("tensor {} is of type {}; expected F32, F16 or "
                                                  "BF16, as norms and biases are never quantized",
                                                  slot.name, type.name)};
  }
  if (found.n_in % type.block_size != 0) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor {} has rows of {} elements; expected a multiple of {}, the "
                             "block of type {}",
                             slot.name, found.n_in, type.block_size, type.name)};
  }
  // Bounded hyperparameters: at most 2^40 elements, so this cannot overflow.
  const std::size_t bytes =
      quant::row_bytes(found.type, found.n_in) * found.n_out * found.n_experts;
  if (found.bytes.size() != bytes) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor {} has {} bytes; expected {} for shape {} in {}", slot.name,
                             found.bytes.size(), bytes,
                             shape_text(found.n_in, found.n_out, found.n_experts), type.name)};
  }
  return ok();
}

class SlotList {
 public:
  SlotList(const HyperParams& hp, const WeightSource& source) : hp_(hp), source_(source) {}

  void matrix(std::string name, std::size_t n_in, std::size_t n_out, Matrix& out,
              std::size_t n_experts = 1) {
    slots_.push_back({.name = std::move(name),
                      .n_in = n_in,
                      .n_out = n_out,
                      .n_experts = n_experts,
                      .matrix = &out});
  }
  void vector(std::string name, std::size_t n, Vector& out, Presence presence = Presence::kAlways) {
    if (presence == Presence::kNever) return;
    if (presence == Presence::kOptional && !source_.has(name)) return;
    slots_.push_back({.name = std::move(name), .n_in = n, .vector = &out});
  }

  void layer(std::uint32_t index, LayerWeights& out) {
    const std::string prefix = fmt::format("blk.{}.", index);
    const Architecture& arch = *hp_.architecture;
    const std::size_t hidden = hp_.hidden_size;
    const std::size_t q_size = std::size_t{hp_.n_heads} * hp_.head_dim;
    const std::size_t kv_size = std::size_t{hp_.n_kv_heads} * hp_.head_dim;
    vector(prefix + "attn_norm.weight", hidden, out.attn_norm);
    matrix(prefix + "attn_q.weight", hidden, q_size, out.q);
    matrix(prefix + "attn_k.weight", hidden, kv_size, out.k);
    matrix(prefix + "attn_v.weight", hidden, kv_size, out.v);
    vector(prefix + "attn_q.bias", q_size, out.q_bias, arch.qkv_bias);
    vector(prefix + "attn_k.bias", kv_size, out.k_bias, arch.qkv_bias);
    vector(prefix + "attn_v.bias", kv_size, out.v_bias, arch.qkv_bias);
    vector(prefix + "attn_q_norm.weight", hp_.head_dim, out.q_norm, arch.qk_norm);
    vector(prefix + "attn_k_norm.weight", hp_.head_dim, out.k_norm, arch.qk_norm);
    matrix(prefix + "attn_output.weight", q_size, hidden, out.attn_output);
    vector(prefix + "ffn_norm.weight", hidden, out.ffn_norm);
    if (hp_.n_experts == 0) {
      matrix(prefix + "ffn_gate.weight", hidden, hp_.ffn_size, out.gate);
      matrix(prefix + "ffn_up.weight", hidden, hp_.ffn_size, out.up);
      matrix(prefix + "ffn_down.weight", hp_.ffn_size, hidden, out.down);
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
    std::vector<TensorBytes> found;
    std::size_t total = 0;
    for (const Slot& slot : slots_) {
      RECUA_ASSIGN_OR_RETURN(TensorBytes tensor, source_.tensor(slot.name));
      RECUA_RETURN_IF_ERROR(check_tensor(slot, tensor));
      total += tensor.bytes.size();
      found.push_back(std::move(tensor));
    }
    std::size_t done = 0;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const std::size_t bytes = found[i].bytes.size();
      if (slots_[i].matrix != nullptr) {
        RECUA_ASSIGN_OR_RETURN(*slots_[i].matrix, device.load_weight(std::move(found[i])));
      } else {
        RECUA_ASSIGN_OR_RETURN(*slots_[i].vector, device.load_vector(found[i]));
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
  const WeightSource& source_;
  std::vector<Slot> slots_;
};

/// The divisors of Llama 3's RoPE scaling; empty if the model has none.
Result<std::vector<float>> read_rope_divisors(const HyperParams& hp, const WeightSource& source) {
  constexpr std::string_view kName = "rope_freqs.weight";
  if (!source.has(kName)) return std::vector<float>{};
  RECUA_ASSIGN_OR_RETURN(const TensorBytes tensor, source.tensor(kName));
  Vector unused;
  const Slot slot{.name = std::string(kName), .n_in = hp.rope_dim / 2, .vector = &unused};
  RECUA_RETURN_IF_ERROR(check_tensor(slot, tensor));
  std::vector<float> divisors(slot.n_in);
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

Result<SliceWeights> load_weights(compute::Device& device, const HyperParams& hp,
                                  const WeightSource& source, const Slice& slice,
                                  const LoadProgress& progress) {
  SliceWeights out;
  out.layers.resize(slice.layer_end - slice.layer_begin);  // Slots point into it from here on.
  const bool tied = !source.has("output.weight");
  SlotList slots(hp, source);
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
  return out;
}

}  // namespace recua::model
