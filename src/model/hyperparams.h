#pragma once
/// The numbers that shape a model, read from GGUF metadata and bounded, so that products of any few
/// of them fit into 64 bits.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "model/architecture.h"

namespace recua::model {

inline constexpr std::uint32_t kLayersMax = 1000;
inline constexpr std::uint32_t kDimMax = 1U << 20;
inline constexpr std::uint32_t kVocabMax = 1U << 24;
inline constexpr std::uint32_t kCtxMax = 1U << 30;
inline constexpr std::uint32_t kExpertsMax = 1024;

/// How rotation angles are stretched for contexts longer than the model was first trained on.
/// Llama 3's scaling is not here: it comes as a tensor, rope_freqs.weight.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kYarn };
  Kind kind = Kind::kNone;
  float factor = 1.0F;               // New context / original context, >= 1.
  std::uint32_t original_n_ctx = 0;  // YaRN only, as the rest.
  float attn_factor = 1.0F;
  float ext_factor = 1.0F;
  float beta_fast = 32.0F;
  float beta_slow = 1.0F;

  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct HyperParams {
  const Architecture* architecture = nullptr;  // Never null after read_hyperparams().
  std::string name;                            // general.name, perhaps empty.
  std::uint32_t vocab_size = 0;
  std::uint32_t n_ctx_train = 0;
  std::uint32_t n_layers = 0;
  std::uint32_t hidden_size = 0;
  std::uint32_t n_heads = 0;
  std::uint32_t n_kv_heads = 0;  // Divides n_heads.
  std::uint32_t head_dim = 0;    // Of queries, keys and values.
  std::uint32_t ffn_size = 0;    // Of the dense feed-forward; 0 with experts.
  std::uint32_t n_experts = 0;   // 0: dense.
  std::uint32_t n_experts_used = 0;
  std::uint32_t expert_ffn_size = 0;
  float rms_eps = 1e-5F;
  float rope_theta = 10000.0F;
  std::uint32_t rope_dim = 0;  // Rotated elements of a head: even, at most head_dim.
  RopeScaling rope_scaling;
  std::uint32_t sliding_window = 0;  // 0: attention sees all earlier tokens.

  friend bool operator==(const HyperParams&, const HyperParams&) = default;
};

/// vocab_size is the number of rows of token_embd.weight if the file has it, else the key
/// {arch}.vocab_size, else the number of tokens.
/// kNotFound: a key is missing. kCorrupt: a value is out of range. kUnsupported: well-formed, but
/// recua cannot run it (an unknown architecture, layers of different shapes...). Each names the
/// file, the key, the value and what would be right.
Result<HyperParams> read_hyperparams(const gguf::GgufFile& file);

/// The keys that read_hyperparams() reads, for these numbers: a file with them, or with them and
/// the tensors, gives hp again.
void add_hyperparams(const HyperParams& hp, gguf::GgufWriter& writer);

/// A small GGUF with no tensors and only the keys that read_hyperparams() reads of this file, and
/// vocab_size: what a coordinator tells a worker, which reads it with the same bounded reader.
std::vector<std::byte> hyperparams_gguf(const gguf::GgufFile& file, std::uint32_t vocab_size);

}  // namespace recua::model
