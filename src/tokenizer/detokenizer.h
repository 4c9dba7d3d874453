#pragma once
/// Token ids to text as they arrive, never splitting a character.
///
/// A token may hold part of a UTF-8 sequence. push() returns the characters that are complete and
/// holds back at most three bytes that may still become one. What cannot become one any more
/// appears as U+FFFD, one for each maximal invalid part, so the pieces put together are always
/// valid UTF-8 and do not depend on how the ids were cut into calls. Threads: one at a time. The
/// tokenizer must outlive it.

#include <span>
#include <string>
#include <string_view>

#include "tokenizer/token.h"
#include "tokenizer/tokenizer.h"

namespace recua::tokenizer {

/// The part of a Detokenizer that knows only bytes: any bytes in, whole characters out.
class Utf8Stream {
 public:
  [[nodiscard]] std::string push(std::string_view bytes);
  /// The end: a rest that is still incomplete becomes one U+FFFD. The stream may be used again.
  [[nodiscard]] std::string flush();

 private:
  std::string held_;  // A proper prefix of a well-formed sequence: 0 to 3 bytes.
};

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  /// The text that this token completes; often empty.
  [[nodiscard]] std::string push(TokenId id);
  [[nodiscard]] std::string push(std::span<const TokenId> ids);
  /// The end of the text. Afterwards the detokenizer goes on as if more text followed.
  [[nodiscard]] std::string flush();

 private:
  PieceReader bytes_;
  Utf8Stream stream_;
};

}  // namespace recua::tokenizer
