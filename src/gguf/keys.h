#pragma once
/// The metadata keys that recua reads, and the names of our fields for them.
///
/// Keys of an architecture begin with its name: arch_key("llama", arch::kNLayers) is
/// "llama.block_count". Source: the GGUF specification, "Standardized key-value pairs".

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace recua::gguf {

namespace keys {
inline constexpr std::string_view kArchitecture = "general.architecture";
inline constexpr std::string_view kName = "general.name";
inline constexpr std::string_view kType = "general.type";  // Absent: "model".
inline constexpr std::string_view kAlignment = "general.alignment";
inline constexpr std::string_view kFileType = "general.file_type";
inline constexpr std::string_view kQuantizationVersion = "general.quantization_version";

inline constexpr std::string_view kSplitIndex = "split.no";
inline constexpr std::string_view kSplitCount = "split.count";
inline constexpr std::string_view kSplitTensors = "split.tensors.count";

// Of files that change a model, kType "adapter".
inline constexpr std::string_view kAdapterType = "adapter.type";
inline constexpr std::string_view kLoraAlpha = "adapter.lora.alpha";
inline constexpr std::string_view kInvocationTokens = "adapter.alora.invocation_tokens";

inline constexpr std::string_view kTokenizerModel = "tokenizer.ggml.model";
inline constexpr std::string_view kTokenizerPre = "tokenizer.ggml.pre";
inline constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
inline constexpr std::string_view kTokenScores = "tokenizer.ggml.scores";
inline constexpr std::string_view kTokenTypes = "tokenizer.ggml.token_type";
inline constexpr std::string_view kMerges = "tokenizer.ggml.merges";
inline constexpr std::string_view kBosId = "tokenizer.ggml.bos_token_id";
inline constexpr std::string_view kEosId = "tokenizer.ggml.eos_token_id";
inline constexpr std::string_view kEotId = "tokenizer.ggml.eot_token_id";
inline constexpr std::string_view kUnknownId = "tokenizer.ggml.unknown_token_id";
inline constexpr std::string_view kSeparatorId = "tokenizer.ggml.seperator_token_id";  // Sic.
inline constexpr std::string_view kPaddingId = "tokenizer.ggml.padding_token_id";
inline constexpr std::string_view kAddBos = "tokenizer.ggml.add_bos_token";
inline constexpr std::string_view kAddEos = "tokenizer.ggml.add_eos_token";
inline constexpr std::string_view kAddSpacePrefix = "tokenizer.ggml.add_space_prefix";
inline constexpr std::string_view kChatTemplate = "tokenizer.chat_template";
}  // namespace keys

/// The value of keys::kFileType when most weights are F32.
inline constexpr std::uint32_t kFileTypeF32 = 0;

/// Whether a key says how a file holds the model, and not what the model is: a copy in one piece or
/// with other weight types has its own.
inline bool is_about_file(std::string_view key) {
  return key == keys::kSplitIndex || key == keys::kSplitCount || key == keys::kSplitTensors ||
         key == keys::kAlignment || key == keys::kFileType || key == keys::kQuantizationVersion;
}

/// Endings of keys that begin with the architecture's name.
namespace arch {
inline constexpr std::string_view kNCtx = "context_length";
inline constexpr std::string_view kHiddenSize = "embedding_length";
inline constexpr std::string_view kNLayers = "block_count";
inline constexpr std::string_view kFfnSize = "feed_forward_length";
inline constexpr std::string_view kExpertFfnSize = "expert_feed_forward_length";
inline constexpr std::string_view kNHeads = "attention.head_count";
inline constexpr std::string_view kNKvHeads = "attention.head_count_kv";
inline constexpr std::string_view kHeadDimK = "attention.key_length";
inline constexpr std::string_view kHeadDimV = "attention.value_length";
inline constexpr std::string_view kRmsEps = "attention.layer_norm_rms_epsilon";
inline constexpr std::string_view kSlidingWindow = "attention.sliding_window";
inline constexpr std::string_view kNExperts = "expert_count";
inline constexpr std::string_view kNExpertsUsed = "expert_used_count";
inline constexpr std::string_view kExpertWeightsScale = "expert_weights_scale";
inline constexpr std::string_view kExpertWeightsNorm = "expert_weights_norm";
inline constexpr std::string_view kVocabSize = "vocab_size";
inline constexpr std::string_view kRopeDim = "rope.dimension_count";
inline constexpr std::string_view kRopeTheta = "rope.freq_base";
inline constexpr std::string_view kRopeScalingType = "rope.scaling.type";
inline constexpr std::string_view kRopeScalingFactor = "rope.scaling.factor";
inline constexpr std::string_view kRopeScaleLinear = "rope.scale_linear";
inline constexpr std::string_view kRopeOriginalNCtx = "rope.scaling.original_context_length";
inline constexpr std::string_view kRopeAttnFactor = "rope.scaling.attn_factor";
inline constexpr std::string_view kYarnBetaFast = "rope.scaling.yarn_beta_fast";
inline constexpr std::string_view kYarnBetaSlow = "rope.scaling.yarn_beta_slow";
inline constexpr std::string_view kYarnExtFactor = "rope.scaling.yarn_ext_factor";
inline constexpr std::string_view kYarnLogMultiplier = "rope.scaling.yarn_log_multiplier";
}  // namespace arch

/// "{architecture}.{ending}".
inline std::string arch_key(std::string_view architecture, std::string_view ending) {
  std::string key(architecture);
  key += '.';
  key += ending;
  return key;
}

/// Our field name beside the file's key, for documents and `recua inspect`.
struct KeyName {
  std::string_view ending;
  std::string_view field;
};
inline constexpr std::array kArchKeyNames = {
    KeyName{arch::kNCtx, "n_ctx"},
    KeyName{arch::kHiddenSize, "hidden_size"},
    KeyName{arch::kNLayers, "n_layers"},
    KeyName{arch::kFfnSize, "ffn_size"},
    KeyName{arch::kExpertFfnSize, "expert_ffn_size"},
    KeyName{arch::kNHeads, "n_heads"},
    KeyName{arch::kNKvHeads, "n_kv_heads"},
    KeyName{arch::kHeadDimK, "head_dim"},
    KeyName{arch::kHeadDimV, "head_dim_v"},
    KeyName{arch::kRmsEps, "rms_eps"},
    KeyName{arch::kSlidingWindow, "sliding_window"},
    KeyName{arch::kNExperts, "n_experts"},
    KeyName{arch::kNExpertsUsed, "n_experts_used"},
    KeyName{arch::kVocabSize, "vocab_size"},
    KeyName{arch::kRopeDim, "rope_dim"},
    KeyName{arch::kRopeTheta, "rope_theta"},
    KeyName{arch::kRopeScalingType, "rope_scaling"},
    KeyName{arch::kRopeScalingFactor, "rope_factor"},
    KeyName{arch::kRopeOriginalNCtx, "rope_original_n_ctx"},
};

}  // namespace recua::gguf
