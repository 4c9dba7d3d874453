#pragma once
/// What distinguishes one architecture from another. All of them are the same stack (norm,
/// attention, norm, gated feed-forward or experts) with the tensor names of the GGUF specification;
/// an architecture is a small file, arch_<family>.cc, that fills this table.

#include <string>
#include <string_view>

#include "compute/device.h"

namespace recua::model {

enum class Presence { kNever, kOptional, kAlways };

struct Architecture {
  std::string_view name;  // As in general.architecture.
  compute::RopeKind rope = compute::RopeKind::kInterleaved;
  Presence qkv_bias = Presence::kNever;  // attn_q.bias, attn_k.bias, attn_v.bias
  Presence qk_norm = Presence::kNever;   // attn_q_norm.weight, attn_k_norm.weight, per head
  Presence experts = Presence::kNever;   // ffn_gate_inp.weight, ffn_*_exps.weight
};

const Architecture& arch_llama();
const Architecture& arch_qwen2();
const Architecture& arch_qwen3();
const Architecture& arch_qwen3moe();

/// nullptr: recua does not run it.
const Architecture* find_architecture(std::string_view name);
/// "llama, qwen2, ...", for messages.
std::string known_architectures();

}  // namespace recua::model
