#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "tokenizer/byte_level.h"

namespace recua::tokenizer {
namespace {

constexpr std::size_t kQuotedBytesMax = 80;              // Of a foreign text in a message.
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581: SentencePiece writes spaces so.

std::string unmark_spaces(std::string_view written) {
  std::string out;
  out.reserve(written.size());
  while (!written.empty()) {
    const std::size_t mark = written.find(kSpaceMark);
    out += written.substr(0, mark);
    if (mark == std::string_view::npos) break;
    out += ' ';
    written.remove_prefix(mark + kSpaceMark.size());
  }
  return out;
}

// The byte that "<0x0A>" names.
std::optional<unsigned char> named_byte(std::string_view written) {
  if (written.size() != 6 || !written.starts_with("<0x") || written.back() != '>') {
    return std::nullopt;
  }
  unsigned char byte = 0;
  const char* const end = written.data() + 5;
  const auto [stop, error] = std::from_chars(written.data() + 3, end, byte, 16);
  if (error != std::errc() || stop != end) return std::nullopt;
  return byte;
}

// Tokens that end an answer, by the names that published models give them. Files often list only
// one as EOS although the model ends its turns with another.
constexpr std::string_view kEndNames[] = {
    "</s>",             // Llama 2, Mistral
    "<|eot_id|>",       // Llama 3
    "<|eom_id|>",       // Llama 3.1, before a tool's answer
    "<|end_of_text|>",  // Llama 3, Granite
    "<|im_end|>",       // ChatML: Qwen and many
    "<|endoftext|>",    // GPT-2, Qwen, Phi
    "<|end|>",          // Phi 3
    "<end_of_turn>",    // Gemma
    "<|eot|>",          // Llama 4
    "<EOT>",            // Code Llama
    "<|return|>",
    "<|call|>",  // gpt-oss
    "<\xEF\xBD\x9C"
    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",  // DeepSeek
};

Error corrupt(std::string message) { return Error{ErrorCode::kCorrupt, std::move(message)}; }

}  // namespace

bool is_end_name(std::string_view text) {
  return std::ranges::find(kEndNames, text) != std::end(kEndNames);
}

bool Vocabulary::is_special(TokenId id) const {
  return type(id) == TokenType::kControl || type(id) == TokenType::kUnknown;
}

Result<Vocabulary> Vocabulary::create(const VocabData& data) {
  Vocabulary vocabulary;
  if (data.model == "llama") {
    vocabulary.kind_ = VocabKind::kSentencePiece;
  } else if (data.model == "gpt2") {
    vocabulary.kind_ = VocabKind::kByteLevelBpe;
  } else {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tokenizer.ggml.model is {:?}; recua knows \"llama\" (SentencePiece) "
                             "and \"gpt2\" (byte-level BPE)",
                             std::string_view(data.model).substr(0, kQuotedBytesMax))};
  }
  if (data.tokens.empty()) {
    return corrupt("tokenizer.ggml.tokens is missing or empty; the vocabulary must have a token");
  }
  if (data.tokens.size() > static_cast<std::size_t>(std::numeric_limits<TokenId>::max())) {
    return corrupt(fmt::format("tokenizer.ggml.tokens has {} entries; ids are 32 bits wide",
                               data.tokens.size()));
  }
  RECUA_RETURN_IF_ERROR(vocabulary.set_types(data));
  RECUA_RETURN_IF_ERROR(vocabulary.set_named_tokens(data));
  RECUA_RETURN_IF_ERROR(vocabulary.add_pieces(data));
  RECUA_RETURN_IF_ERROR(vocabulary.check_coverage());
  return vocabulary;
}

Result<void> Vocabulary::set_types(const VocabData& data) {
  const std::size_t n = data.tokens.size();
  if (!data.types.empty() && data.types.size() != n) {
    return corrupt(fmt::format(
        "tokenizer.ggml.token_type has {} entries and tokenizer.ggml.tokens has {}; must be equal",
        data.types.size(), n));
  }
  types_.assign(n, TokenType::kNormal);
  for (std::size_t i = 0; i < data.types.size(); ++i) {
    if (data.types[i] < 1 || data.types[i] > 6) {
      return corrupt(
          fmt::format("tokenizer.ggml.token_type[{}] is {}; must be 1 to 6", i, data.types[i]));
    }
    types_[i] = static_cast<TokenType>(data.types[i]);
  }

  if (kind_ != VocabKind::kSentencePiece) return {};
  if (data.scores.size() != n) {
    return corrupt(fmt::format(
        "tokenizer.ggml.scores has {} entries and tokenizer.ggml.tokens has {}; must be equal",
        data.scores.size(), n));
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (std::isnan(data.scores[i])) {
      return corrupt(fmt::format("tokenizer.ggml.scores[{}] is not a number", i));
    }
  }
  scores_ = data.scores;
  return {};
}

Result<void> Vocabulary::set_named_tokens(const VocabData& data) {
  const struct {
    const char* key;
    std::optional<std::int32_t> id;
    TokenId* target;
    TokenType untyped;  // What the token is if the file has no types.
  } named[] = {
      {"bos_token_id", data.bos, &bos, TokenType::kControl},
      {"eos_token_id", data.eos, &eos, TokenType::kControl},
      {"eot_token_id", data.eot, &eot, TokenType::kControl},
      {"eom_token_id", data.eom, &eom, TokenType::kControl},
      {"unknown_token_id", data.unk, &unk, TokenType::kUnknown},
      {"seperator_token_id", data.sep, nullptr, TokenType::kControl},  // Spelled so in the format.
      {"padding_token_id", data.pad, nullptr, TokenType::kControl},
  };
  for (const auto& [key, id, target, untyped] : named) {
    if (!id || *id == kNoToken) continue;
    if (!contains(*id)) {
      return corrupt(fmt::format(
          "tokenizer.ggml.{} is {}; the vocabulary has {} tokens (4294967295 means none)", key,
          static_cast<std::uint32_t>(*id), size()));
    }
    if (target != nullptr) *target = *id;
    if (data.types.empty()) types_[static_cast<std::size_t>(*id)] = untyped;
  }
  return {};
}

Result<void> Vocabulary::add_pieces(const VocabData& data) {
  const bool sentence_piece = kind_ == VocabKind::kSentencePiece;
  byte_tokens_.fill(kNoToken);
  std::size_t n_bytes_max = 0;  // No piece is longer than it is written.
  for (const std::string& token : data.tokens) n_bytes_max += token.size();
  if (n_bytes_max > std::numeric_limits<std::uint32_t>::max()) {
    return corrupt(fmt::format("tokenizer.ggml.tokens has {} bytes of text; at most 4 GiB can be",
                               n_bytes_max));
  }
  bytes_.reserve(n_bytes_max);
  ends_.reserve(data.tokens.size() + 1);

  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string& written = data.tokens[i];
    const std::optional<unsigned char> byte = named_byte(written);
    if (data.types.empty() && sentence_piece && byte) types_[i] = TokenType::kByte;

    // Some conversions mark these as user-defined; they are structure like the others.
    if (types_[i] == TokenType::kUserDefined && is_end_name(written)) {
      types_[i] = TokenType::kControl;
    }
    std::string piece = written;
    if (types_[i] == TokenType::kByte) {
      if (!byte) {
        return corrupt(fmt::format(
            "tokenizer.ggml.tokens[{}] is {:?} and of type 6 (byte); must look like \"<0x0A>\"", i,
            std::string_view(written).substr(0, kQuotedBytesMax)));
      }
      piece.assign(1, static_cast<char>(*byte));
      if (byte_tokens_[*byte] == kNoToken) byte_tokens_[*byte] = static_cast<TokenId>(i);
    } else if (types_[i] == TokenType::kNormal) {
      piece = sentence_piece ? unmark_spaces(written) : from_byte_level(written);
    }
    bytes_.insert(bytes_.end(), piece.begin(), piece.end());
    ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  }

  // Now that the bytes no longer move: the way back. The first of equal tokens wins.
  const auto in_text = [this](TokenId id) {
    return is_special(id) || type(id) == TokenType::kUserDefined;
  };
  const auto n = static_cast<TokenId>(size());
  std::size_t n_in_text = 0;
  for (TokenId id = 0; id < n; ++id) n_in_text += in_text(id) ? 1 : 0;
  normal_ = PieceIndex(size() - n_in_text);
  special_ = PieceIndex(n_in_text);
  const auto piece_of = [this](TokenId id) { return piece(id); };
  for (TokenId id = 0; id < n; ++id) {
    if (piece(id).empty()) continue;
    if (in_text(id)) {
      special_.add(id, piece_of);
    } else if (type(id) == TokenType::kNormal) {
      normal_.add(id, piece_of);
    }
  }
  if (sentence_piece) return {};
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    byte_tokens_[byte] = find_normal({&one, 1});
  }
  return {};
}

// Every text must have ids. Bytes that no UTF-8 text contains may be missing in a byte-level
// vocabulary: it never sees them.
Result<void> Vocabulary::check_coverage() const {
  if (unk != kNoToken) return {};
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (byte_tokens_[byte] != kNoToken) continue;
    const bool in_utf8 = byte < 0xC0 || (byte > 0xC1 && byte < 0xF5);
    if (kind_ == VocabKind::kByteLevelBpe && !in_utf8) continue;
    return corrupt(
        fmt::format("tokenizer.ggml.tokens has no token for the byte {:02X} and "
                    "tokenizer.ggml.unknown_token_id "
                    "is missing; one of them must be there",
                    byte));
  }
  return {};
}

}  // namespace recua::tokenizer
