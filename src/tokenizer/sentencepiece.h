#pragma once
/// SentencePiece BPE by score: of all neighbours that together are a token, the pair with the
/// highest score becomes one, the leftmost first, until none is left. What is no token then becomes
/// its bytes.
///
/// A long text is merged in parts, cut between two bytes that stand side by side in no token: no
/// merge crosses such a place, so the ids are those of the whole. In a language that writes spaces
/// there is one at almost every word.
/// Memory: about 100 bytes per byte of a part, whatever the text's length.
/// Source: Kudo and Richardson 2018; Sennrich et al. 2016.

#include <bitset>
#include <cstddef>
#include <string_view>
#include <vector>

#include "tokenizer/token.h"
#include "tokenizer/vocabulary.h"

namespace recua::tokenizer {

class SentencePiece {
 public:
  /// A part has as many bytes, and then those up to the next place where it may be cut.
  static constexpr std::size_t kPartBytes = 4096;

  /// Borrows the vocabulary, which must outlive it and stay where it is.
  explicit SentencePiece(const Vocabulary& vocabulary, std::size_t part_bytes = kPartBytes);

  /// Appends the ids of text, any bytes: those that are not valid UTF-8 become byte tokens. With
  /// space_first as if a space stood in front.
  void encode(std::string_view text, bool space_first, std::vector<TokenId>& out) const;

 private:
  [[nodiscard]] std::size_t part_end(std::string_view text, std::size_t begin) const;
  void encode_part(std::string_view view, std::vector<TokenId>& out) const;
  void append_ids(std::string_view piece, std::vector<TokenId>& out) const;

  const Vocabulary* vocabulary_;
  std::size_t part_bytes_;
  std::size_t piece_bytes_max_ = 0;
  std::bitset<65536> neighbours_;  // [256 left + right]: the bytes stand so in some token.
};

}  // namespace recua::tokenizer
