#include "model/hyperparams.h"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "gguf/keys.h"

namespace recua::model {
namespace {

using gguf::GgufFile;

/// Reads keys of one architecture, with bounds.
class KeyReader {
 public:
  KeyReader(const GgufFile& file, std::string_view architecture)
      : file_(file), architecture_(architecture) {}

  [[nodiscard]] std::string key(std::string_view ending) const {
    return gguf::arch_key(architecture_, ending);
  }

  template <class T>
  Error out_of_range(std::string_view ending, T value, std::string_view expected) const {
    return {ErrorCode::kCorrupt,
            fmt::format("{}: {} is {}; expected {}", file_.name(), key(ending), value, expected)};
  }
  Error unsupported(std::string_view ending, std::string_view value,
                    std::string_view expected) const {
    return {ErrorCode::kUnsupported, fmt::format("{}: {} is {}; recua can do {}", file_.name(),
                                                 key(ending), value, expected)};
  }

  Result<std::uint32_t> count(std::string_view ending, std::uint32_t max) const {
    RECUA_ASSIGN_OR_RETURN(const std::uint32_t value, file_.get_u32(key(ending)));
    return bounded(ending, value, max);
  }
  Result<std::uint32_t> count_or(std::string_view ending, std::uint32_t fallback,
                                 std::uint32_t max) const {
    RECUA_ASSIGN_OR_RETURN(const std::optional<std::uint32_t> value, file_.find_u32(key(ending)));
    return bounded(ending, value.value_or(fallback), max);
  }
  /// A number in [low, high].
  Result<float> number_or(std::string_view ending, float fallback, float low, float high) const {
    RECUA_ASSIGN_OR_RETURN(const std::optional<float> value, file_.find_f32(key(ending)));
    const float number = value.value_or(fallback);
    if (number >= low && number <= high) return number;
    return out_of_range(ending, number, fmt::format("a number from {} to {}", low, high));
  }

  [[nodiscard]] const GgufFile& file() const { return file_; }

 private:
  Result<std::uint32_t> bounded(std::string_view ending, std::uint32_t value,
                                std::uint32_t max) const {
    if (value >= 1 && value <= max) return value;
    return out_of_range(ending, value, fmt::format("a count from 1 to {}", max));
  }

  const GgufFile& file_;
  std::string_view architecture_;
};

Result<std::uint32_t> read_vocab_size(const KeyReader& keys) {
  const GgufFile& file = keys.file();
  if (const gguf::TensorInfo* table = file.find("token_embd.weight"); table != nullptr) {
    if (table->n_dims <= 2 && table->n_rows() >= 1 && table->n_rows() <= kVocabMax) {
      return static_cast<std::uint32_t>(table->n_rows());
    }
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: tensor token_embd.weight has shape {}; expected [hidden_size, "
                             "vocab_size] with at most {} tokens",
                             file.name(), table->shape_text(), kVocabMax)};
  }
  if (file.has(keys.key(gguf::arch::kVocabSize))) {
    return keys.count(gguf::arch::kVocabSize, kVocabMax);
  }
  const gguf::Value* tokens = file.value(gguf::keys::kTokens);
  if (tokens != nullptr && std::holds_alternative<gguf::Array>(*tokens)) {
    const std::uint64_t n = std::get<gguf::Array>(*tokens).n;
    if (n >= 1 && n <= kVocabMax) return static_cast<std::uint32_t>(n);
  }
  return Error{ErrorCode::kNotFound,
               fmt::format("{}: the size of the vocabulary is nowhere: expected the tensor "
                           "token_embd.weight, the key {}, or the tokens of a vocabulary",
                           file.name(), keys.key(gguf::arch::kVocabSize))};
}

Result<void> read_heads(const KeyReader& keys, HyperParams& hp) {
  namespace arch = gguf::arch;
  RECUA_ASSIGN_OR_RETURN(hp.n_heads, keys.count(arch::kNHeads, 65536));
  RECUA_ASSIGN_OR_RETURN(hp.n_kv_heads, keys.count_or(arch::kNKvHeads, hp.n_heads, 65536));
  if (hp.n_heads % hp.n_kv_heads != 0) {
    return keys.out_of_range(arch::kNKvHeads, hp.n_kv_heads,
                             fmt::format("a divisor of the {} heads", hp.n_heads));
  }
  const bool has_head_dim = keys.file().has(keys.key(arch::kHeadDimK));
  if (!has_head_dim && hp.hidden_size % hp.n_heads != 0) {
    return keys.out_of_range(
        arch::kNHeads, hp.n_heads,
        fmt::format("a divisor of {}, which is {}, or the key {}", keys.key(arch::kHiddenSize),
                    hp.hidden_size, keys.key(arch::kHeadDimK)));
  }
  RECUA_ASSIGN_OR_RETURN(hp.head_dim,
                         keys.count_or(arch::kHeadDimK, hp.hidden_size / hp.n_heads, 65536));
  RECUA_ASSIGN_OR_RETURN(const std::uint32_t value_dim,
                         keys.count_or(arch::kHeadDimV, hp.head_dim, 65536));
  if (value_dim != hp.head_dim) {
    return keys.unsupported(arch::kHeadDimV, fmt::to_string(value_dim),
                            fmt::format("the same as the keys' {}", hp.head_dim));
  }
  if (std::uint64_t{hp.n_heads} * hp.head_dim > kDimMax) {
    return keys.out_of_range(
        arch::kNHeads, hp.n_heads,
        fmt::format("heads of {} that are together at most {} wide", hp.head_dim, kDimMax));
  }
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::uint32_t> window,
                         keys.file().find_u32(keys.key(arch::kSlidingWindow)));
  hp.sliding_window = window.value_or(0);
  return ok();
}

Result<void> read_rope_scaling(const KeyReader& keys, HyperParams& hp) {
  namespace arch = gguf::arch;
  constexpr float kFactorMax = 1e6F;
  RopeScaling& scaling = hp.rope_scaling;
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::string_view> type,
                         keys.file().find_str(keys.key(arch::kRopeScalingType)));
  const std::string key = keys.key(arch::kRopeScalingFactor);
  // Old files have only the linear factor, under another name.
  const std::string_view factor_key =
      keys.file().has(key) ? arch::kRopeScalingFactor : arch::kRopeScaleLinear;
  const bool has_factor = keys.file().has(keys.key(factor_key));
  if (type == "none" || (!type && !has_factor)) return ok();
  if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::kYarn;
  } else if (!type || type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
  } else {
    return keys.unsupported(arch::kRopeScalingType, gguf::quoted(*type),
                            "\"none\", \"linear\" and \"yarn\"");
  }
  RECUA_ASSIGN_OR_RETURN(const std::optional<float> factor,
                         keys.file().find_f32(keys.key(factor_key)));
  scaling.factor = factor.value_or(1.0F);
  if (scaling.factor == 0.0F) scaling.factor = 1.0F;  // Some files say 0 for "not scaled".
  if (!(scaling.factor >= 1.0F && scaling.factor <= kFactorMax)) {
    return keys.out_of_range(factor_key, scaling.factor,
                             fmt::format("a number from 1 to {}", kFactorMax));
  }
  if (scaling.kind != RopeScaling::Kind::kYarn) return ok();
  RECUA_ASSIGN_OR_RETURN(scaling.original_n_ctx,
                         keys.count_or(arch::kRopeOriginalNCtx, hp.n_ctx_train, kCtxMax));
  RECUA_ASSIGN_OR_RETURN(scaling.attn_factor,
                         keys.number_or(arch::kRopeAttnFactor, 1.0F, 1e-3F, 1e3F));
  RECUA_ASSIGN_OR_RETURN(scaling.ext_factor,
                         keys.number_or(arch::kYarnExtFactor, 1.0F, 0.0F, 1.0F));
  RECUA_ASSIGN_OR_RETURN(scaling.beta_fast,
                         keys.number_or(arch::kYarnBetaFast, 32.0F, 1e-3F, 1e6F));
  RECUA_ASSIGN_OR_RETURN(scaling.beta_slow, keys.number_or(arch::kYarnBetaSlow, 1.0F, 1e-3F, 1e6F));
  return ok();
}

Result<void> read_rope(const KeyReader& keys, HyperParams& hp) {
  namespace arch = gguf::arch;
  RECUA_ASSIGN_OR_RETURN(hp.rope_dim, keys.count_or(arch::kRopeDim, hp.head_dim, 65536));
  if (hp.rope_dim > hp.head_dim || hp.rope_dim % 2 != 0) {
    return keys.out_of_range(arch::kRopeDim, hp.rope_dim,
                             fmt::format("an even number up to the head's {}", hp.head_dim));
  }
  RECUA_ASSIGN_OR_RETURN(hp.rope_theta, keys.number_or(arch::kRopeTheta, 10000.0F, 1.001F, 1e15F));
  return read_rope_scaling(keys, hp);
}

Result<void> read_feed_forward(const KeyReader& keys, HyperParams& hp) {
  namespace arch = gguf::arch;
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::uint32_t> n_experts,
                         keys.file().find_u32(keys.key(arch::kNExperts)));
  hp.n_experts = n_experts.value_or(0);
  const Presence allowed = hp.architecture->experts;
  if (hp.n_experts == 0) {
    if (allowed == Presence::kAlways) {
      return keys.out_of_range(arch::kNExperts, hp.n_experts,
                               fmt::format("a count from 1 to {}", kExpertsMax));
    }
    RECUA_ASSIGN_OR_RETURN(hp.ffn_size, keys.count(arch::kFfnSize, kDimMax));
    return ok();
  }
  if (allowed == Presence::kNever) {
    return keys.unsupported(arch::kNExperts, fmt::to_string(hp.n_experts),
                            fmt::format("no experts in a model of type {}", hp.architecture->name));
  }
  RECUA_ASSIGN_OR_RETURN(hp.n_experts, keys.count(arch::kNExperts, kExpertsMax));
  RECUA_ASSIGN_OR_RETURN(hp.n_experts_used, keys.count(arch::kNExpertsUsed, hp.n_experts));
  if (keys.file().has(keys.key(arch::kExpertFfnSize))) {
    RECUA_ASSIGN_OR_RETURN(hp.expert_ffn_size, keys.count(arch::kExpertFfnSize, kDimMax));
  } else {
    RECUA_ASSIGN_OR_RETURN(hp.expert_ffn_size, keys.count(arch::kFfnSize, kDimMax));
  }
  RECUA_ASSIGN_OR_RETURN(const std::optional<float> scale,
                         keys.file().find_f32(keys.key(arch::kExpertWeightsScale)));
  if (scale && *scale != 0.0F && *scale != 1.0F) {
    return keys.unsupported(arch::kExpertWeightsScale, fmt::to_string(*scale), "1 (or 0: unset)");
  }
  RECUA_ASSIGN_OR_RETURN(const std::optional<bool> normalized,
                         keys.file().find_bool(keys.key(arch::kExpertWeightsNorm)));
  if (normalized && !*normalized) {
    return keys.unsupported(arch::kExpertWeightsNorm, "false", "true");
  }
  return ok();
}

void add_rope_scaling(const RopeScaling& scaling, std::string_view architecture,
                      gguf::GgufWriter& writer) {
  namespace arch = gguf::arch;
  using gguf::Value;
  if (scaling.kind == RopeScaling::Kind::kNone) return;
  const auto key = [architecture](std::string_view ending) {
    return gguf::arch_key(architecture, ending);
  };
  const bool is_yarn = scaling.kind == RopeScaling::Kind::kYarn;
  writer.add(key(arch::kRopeScalingType), is_yarn ? "yarn" : "linear");
  writer.add(key(arch::kRopeScalingFactor), Value(scaling.factor));
  if (!is_yarn) return;
  writer.add(key(arch::kRopeOriginalNCtx), Value(scaling.original_n_ctx));
  writer.add(key(arch::kRopeAttnFactor), Value(scaling.attn_factor));
  writer.add(key(arch::kYarnExtFactor), Value(scaling.ext_factor));
  writer.add(key(arch::kYarnBetaFast), Value(scaling.beta_fast));
  writer.add(key(arch::kYarnBetaSlow), Value(scaling.beta_slow));
}

}  // namespace

Result<HyperParams> read_hyperparams(const GgufFile& file) {
  namespace arch = gguf::arch;
  HyperParams hp;
  RECUA_ASSIGN_OR_RETURN(const std::string_view name, file.get_str(gguf::keys::kArchitecture));
  hp.architecture = find_architecture(name);
  if (hp.architecture == nullptr) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: {} is {}; recua runs {}", file.name(), gguf::keys::kArchitecture,
                             gguf::quoted(name), known_architectures())};
  }
  const KeyReader keys(file, hp.architecture->name);
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::string_view> title,
                         file.find_str(gguf::keys::kName));
  hp.name = title.value_or("");
  RECUA_ASSIGN_OR_RETURN(hp.n_layers, keys.count(arch::kNLayers, kLayersMax));
  RECUA_ASSIGN_OR_RETURN(hp.hidden_size, keys.count(arch::kHiddenSize, kDimMax));
  RECUA_ASSIGN_OR_RETURN(hp.n_ctx_train, keys.count(arch::kNCtx, kCtxMax));
  RECUA_ASSIGN_OR_RETURN(hp.vocab_size, read_vocab_size(keys));
  RECUA_RETURN_IF_ERROR(read_heads(keys, hp));
  RECUA_RETURN_IF_ERROR(read_rope(keys, hp));
  RECUA_RETURN_IF_ERROR(read_feed_forward(keys, hp));
  RECUA_ASSIGN_OR_RETURN(const float eps, file.get_f32(keys.key(arch::kRmsEps)));
  if (!(eps > 0.0F && eps < 1.0F)) {
    return keys.out_of_range(arch::kRmsEps, eps, "a number between 0 and 1");
  }
  hp.rms_eps = eps;
  return hp;
}

void add_hyperparams(const HyperParams& hp, gguf::GgufWriter& writer) {
  namespace arch = gguf::arch;
  using gguf::Value;
  const std::string_view architecture = hp.architecture->name;
  const auto key = [architecture](std::string_view ending) {
    return gguf::arch_key(architecture, ending);
  };
  writer.add(gguf::keys::kArchitecture, Value(architecture));
  if (!hp.name.empty()) writer.add(gguf::keys::kName, Value(std::string_view(hp.name)));
  writer.add(key(arch::kNCtx), Value(hp.n_ctx_train));
  writer.add(key(arch::kHiddenSize), Value(hp.hidden_size));
  writer.add(key(arch::kNLayers), Value(hp.n_layers));
  // Readers want the first of these keys with experts, too.
  writer.add(key(arch::kFfnSize), Value(hp.n_experts > 0 ? hp.expert_ffn_size : hp.ffn_size));
  writer.add(key(arch::kNHeads), Value(hp.n_heads));
  writer.add(key(arch::kNKvHeads), Value(hp.n_kv_heads));
  writer.add(key(arch::kHeadDimK), Value(hp.head_dim));
  writer.add(key(arch::kHeadDimV), Value(hp.head_dim));
  writer.add(key(arch::kRmsEps), Value(hp.rms_eps));
  writer.add(key(arch::kRopeTheta), Value(hp.rope_theta));
  writer.add(key(arch::kRopeDim), Value(hp.rope_dim));
  writer.add(key(arch::kVocabSize), Value(hp.vocab_size));
  if (hp.sliding_window > 0) writer.add(key(arch::kSlidingWindow), Value(hp.sliding_window));
  if (hp.n_experts > 0) {
    writer.add(key(arch::kNExperts), Value(hp.n_experts));
    writer.add(key(arch::kNExpertsUsed), Value(hp.n_experts_used));
    writer.add(key(arch::kExpertFfnSize), Value(hp.expert_ffn_size));
  }
  add_rope_scaling(hp.rope_scaling, architecture, writer);
}

std::vector<std::byte> hyperparams_gguf(const GgufFile& file, std::uint32_t vocab_size) {
  constexpr std::size_t kArrayBytesMax = 4096;
  gguf::GgufWriter writer;
  std::string prefix;
  if (const auto name = file.get_str(gguf::keys::kArchitecture); name.ok()) {
    prefix = std::string(*name) + ".";
  }
  const std::string vocab_key = prefix + std::string(gguf::arch::kVocabSize);
  for (const auto& [key, value] : file.metadata()) {
    const auto* array = std::get_if<gguf::Array>(&value);
    if (array != nullptr && array->bytes.size() > kArrayBytesMax) continue;
    const bool is_ours = key == gguf::keys::kArchitecture || key == gguf::keys::kName ||
                         (key.starts_with(prefix) && key != vocab_key);
    if (is_ours) writer.add(key, value);
  }
  writer.add(vocab_key, gguf::Value(vocab_size));
  return writer.header();
}

}  // namespace recua::model
