// Llama 1 to 3.3, Mistral, and Mixtral (which is "llama" with experts).
#include "model/architecture.h"

namespace recua::model {

// GGUF files hold q and k of this family with their rows in the order that makes rotated pairs
// neighbours. A few finetunes have biases on q, k and v.
const Architecture& arch_llama() {
  static constexpr Architecture kLlama = {.name = "llama",
                                          .rope = compute::RopeKind::kInterleaved,
                                          .qkv_bias = Presence::kOptional,
                                          .experts = Presence::kOptional};
  return kLlama;
}

}  // namespace recua::model
