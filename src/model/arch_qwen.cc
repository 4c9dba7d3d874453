// Qwen 2, 2.5 (biases on q, k, v) and Qwen 3 (norms on q and k instead), dense and with experts.
#include "model/architecture.h"

namespace recua::model {

const Architecture& arch_qwen2() {
  static constexpr Architecture kQwen2 = {
      .name = "qwen2", .rope = compute::RopeKind::kSplitHalf, .qkv_bias = Presence::kAlways};
  return kQwen2;
}

const Architecture& arch_qwen3() {
  static constexpr Architecture kQwen3 = {.name = "qwen3",
                                          .rope = compute::RopeKind::kSplitHalf,
                                          .qkv_bias = Presence::kOptional,
                                          .qk_norm = Presence::kAlways};
  return kQwen3;
}

const Architecture& arch_qwen3moe() {
  static constexpr Architecture kQwen3Moe = {.name = "qwen3moe",
                                             .rope = compute::RopeKind::kSplitHalf,
                                             .qkv_bias = Presence::kOptional,
                                             .qk_norm = Presence::kAlways,
                                             .experts = Presence::kAlways};
  return kQwen3Moe;
}

}  // namespace recua::model
