#include "model/vocab.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/log.h"
#include "gguf/keys.h"

namespace recua::model {
namespace {

namespace keys = gguf::keys;

constexpr std::string_view kEomId = "tokenizer.ggml.eom_token_id";

// The id of a token in a vocabulary of n_tokens; all 32 bits set means none, as an absent key does.
Result<std::optional<std::int32_t>> find_id(const gguf::GgufFile& file, std::string_view key,
                                            std::size_t n_tokens) {
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::uint32_t> id, file.find_u32(key));
  if (!id || *id == std::numeric_limits<std::uint32_t>::max()) return std::optional<std::int32_t>();
  if (*id >= n_tokens || !std::in_range<std::int32_t>(*id)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: {} is {}; the vocabulary has {} tokens, so it must be less "
                             "(4294967295 means none)",
                             file.name(), key, *id, n_tokens)};
  }
  return std::optional<std::int32_t>(static_cast<std::int32_t>(*id));
}

std::vector<std::string> copy(const std::vector<std::string_view>& views) {
  return {views.begin(), views.end()};
}

void add_texts(std::string_view key, const std::vector<std::string>& texts,
               gguf::GgufWriter& writer) {
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  writer.add(key, views);
}

}  // namespace

Result<tokenizer::VocabData> read_vocab(const gguf::GgufFile& file) {
  tokenizer::VocabData data;
  RECUA_ASSIGN_OR_RETURN(data.model, file.get_str(keys::kTokenizerModel));
  RECUA_ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens,
                         file.get_str_array(keys::kTokens));
  data.tokens = copy(tokens);
  const std::size_t n_tokens = tokens.size();
  if (file.has(keys::kTokenScores)) {
    RECUA_ASSIGN_OR_RETURN(data.scores, file.get_f32_array(keys::kTokenScores));
  }
  if (file.has(keys::kTokenTypes)) {
    RECUA_ASSIGN_OR_RETURN(data.types, file.get_i32_array(keys::kTokenTypes));
  }
  if (file.has(keys::kMerges)) {
    RECUA_ASSIGN_OR_RETURN(const std::vector<std::string_view> merges,
                           file.get_str_array(keys::kMerges));
    data.merges = copy(merges);
  }
  RECUA_ASSIGN_OR_RETURN(const std::optional<std::string_view> pre,
                         file.find_str(keys::kTokenizerPre));
  data.pre = pre.value_or("default");
  if (!pre && data.model == "gpt2") {
    log_warning(
        "{}: {} is missing; splitting text the default way, which may not be the model's "
        "(a newer conversion of the model has the key)",
        file.name(), keys::kTokenizerPre);
  }

  RECUA_ASSIGN_OR_RETURN(data.bos, find_id(file, keys::kBosId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.eos, find_id(file, keys::kEosId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.eot, find_id(file, keys::kEotId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.eom, find_id(file, kEomId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.unk, find_id(file, keys::kUnknownId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.sep, find_id(file, keys::kSeparatorId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.pad, find_id(file, keys::kPaddingId, n_tokens));
  RECUA_ASSIGN_OR_RETURN(data.add_bos, file.find_bool(keys::kAddBos));
  RECUA_ASSIGN_OR_RETURN(data.add_eos, file.find_bool(keys::kAddEos));
  RECUA_ASSIGN_OR_RETURN(data.add_space_prefix, file.find_bool(keys::kAddSpacePrefix));
  return data;
}

void add_vocab(const tokenizer::VocabData& data, gguf::GgufWriter& writer) {
  writer.add(keys::kTokenizerModel, std::string_view(data.model));
  if (!data.pre.empty()) writer.add(keys::kTokenizerPre, std::string_view(data.pre));
  add_texts(keys::kTokens, data.tokens, writer);
  if (!data.scores.empty()) writer.add(keys::kTokenScores, data.scores);
  if (!data.types.empty()) writer.add(keys::kTokenTypes, data.types);
  if (!data.merges.empty()) add_texts(keys::kMerges, data.merges, writer);
  const struct {
    std::string_view key;
    std::optional<std::int32_t> id;
  } ids[] = {{keys::kBosId, data.bos},     {keys::kEosId, data.eos},
             {keys::kEotId, data.eot},     {kEomId, data.eom},
             {keys::kUnknownId, data.unk}, {keys::kSeparatorId, data.sep},
             {keys::kPaddingId, data.pad}};
  for (const auto& [key, id] : ids) {
    if (id) writer.add(key, static_cast<std::uint32_t>(*id));
  }
  const struct {
    std::string_view key;
    std::optional<bool> flag;
  } flags[] = {{keys::kAddBos, data.add_bos},
               {keys::kAddEos, data.add_eos},
               {keys::kAddSpacePrefix, data.add_space_prefix}};
  for (const auto& [key, flag] : flags) {
    if (flag) writer.add(key, *flag);
  }
}

Result<tokenizer::Tokenizer> load_tokenizer(const gguf::GgufFile& file) {
  RECUA_ASSIGN_OR_RETURN(tokenizer::VocabData data, read_vocab(file));
  auto tokenizer = tokenizer::Tokenizer::create(std::move(data));
  if (!tokenizer.ok()) return std::move(tokenizer.error()).within(file.name());
  return tokenizer;
}

}  // namespace recua::model
