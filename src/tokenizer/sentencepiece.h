#pragma once
/// SentencePiece BPE by score: of all neighbours that together are a token, the pair with the
/// highest score becomes one, the leftmost first, until none is left. What is no token then becomes
/// its bytes.
///
/// Source: Kudo and Richardson 2018; Sennrich et al. 2016.

#include <cstddef>
#include <string_view>
#include <vector>

#include "tokenizer/token.h"
#include "tokenizer/vocabulary.h"

namespace recua::tokenizer {

class SentencePiece {
 public:
  /// Borrows the vocabulary, which must outlive it and stay where it is.
  explicit SentencePiece(const Vocabulary& vocabulary);

  /// Appends the ids of text, any bytes: those that are not valid UTF-8 become byte tokens.
  void encode(std::string_view text, std::vector<TokenId>& out) const;

 private:
  void append_ids(std::string_view piece, std::vector<TokenId>& out) const;

  const Vocabulary* vocabulary_;
  std::size_t piece_bytes_max_ = 0;
};

}  // namespace recua::tokenizer
