#pragma once
/// A vocabulary whose every part has been checked: what each token stands for, and the way back.
///
/// Memory: the bytes of all tokens lie in one block; views into it live as long as the vocabulary,
/// also when it is moved. Threads: never changes after create().

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/piece_index.h"
#include "tokenizer/token.h"
#include "tokenizer/vocab_data.h"

namespace recua::tokenizer {

enum class VocabKind { kSentencePiece, kByteLevelBpe };

/// True for the names that published models give to tokens that end an answer or a turn.
[[nodiscard]] bool is_end_name(std::string_view text);

class Vocabulary {
 public:
  /// Errors: see Tokenizer::create(). Merges are left to ByteLevelBpe.
  static Result<Vocabulary> create(const VocabData& data);

  [[nodiscard]] VocabKind kind() const { return kind_; }
  [[nodiscard]] std::size_t size() const { return types_.size(); }
  [[nodiscard]] bool contains(TokenId id) const {
    return id >= 0 && static_cast<std::size_t>(id) < size();
  }

  /// The bytes that a token stands for: spaces for U+2581 in SentencePiece, bytes for the
  /// byte-level alphabet, and special tokens as they are written. id is in the vocabulary.
  [[nodiscard]] std::string_view piece(TokenId id) const {
    const auto i = static_cast<std::size_t>(id);
    return {bytes_.data() + ends_[i], ends_[i + 1] - ends_[i]};
  }
  [[nodiscard]] TokenType type(TokenId id) const { return types_[static_cast<std::size_t>(id)]; }
  /// Empty for byte-level vocabularies.
  [[nodiscard]] const std::vector<float>& scores() const { return scores_; }

  /// The normal token of exactly these bytes, or kNoToken.
  [[nodiscard]] TokenId find_normal(std::string_view bytes) const { return find(normal_, bytes); }
  /// The control, user-defined or unknown token of exactly this text, or kNoToken.
  [[nodiscard]] TokenId find_special(std::string_view text) const { return find(special_, text); }
  /// The token for one byte where no other fits, or kNoToken.
  [[nodiscard]] TokenId byte_token(unsigned char byte) const { return byte_tokens_[byte]; }

  [[nodiscard]] bool is_special(TokenId id) const;

  // kNoToken where the vocabulary has none.
  TokenId bos = kNoToken;
  TokenId eos = kNoToken;
  TokenId eot = kNoToken;
  TokenId eom = kNoToken;
  TokenId unk = kNoToken;

 private:
  [[nodiscard]] TokenId find(const PieceIndex& index, std::string_view bytes) const {
    return index.find(bytes, [this](TokenId id) { return piece(id); });
  }

  Vocabulary() = default;
  Result<void> set_types(const VocabData& data);
  Result<void> set_named_tokens(const VocabData& data);
  Result<void> add_pieces(const VocabData& data);
  Result<void> check_coverage() const;

  VocabKind kind_ = VocabKind::kSentencePiece;
  std::vector<char> bytes_;
  std::vector<std::uint32_t> ends_{0};  // Token i is bytes_[ends_[i] .. ends_[i + 1]).
  std::vector<TokenType> types_;
  std::vector<float> scores_;
  PieceIndex normal_, special_;
  std::array<TokenId, 256> byte_tokens_{};
};

}  // namespace recua::tokenizer
