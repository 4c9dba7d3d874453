#pragma once
/// Splits text into the words inside which byte-level BPE merges.
///
/// A scheme is a list of expressions. Each one cuts every word of the one before at its matches;
/// what lies between two matches is a word too, so the words put together are always the text.
/// Threads: never changes after create(); any number of threads may split.
/// Source: the tokenizer.json files of the models that each name stands for.

#include <string_view>
#include <vector>

#include "base/result.h"

namespace recua::tokenizer {

/// What a value of tokenizer.ggml.pre means besides how it splits.
struct PretokenizerTraits {
  bool whole_words = false;  // A word that is a token is never built by merges.
  bool nfc = false;          // The model was trained on text in Unicode NFC.
  bool add_bos = false;      // Its prompts begin with BOS even where the file does not say so.
};

class Pretokenizer {
 public:
  /// kUnsupported: no scheme of this name; the message lists those that there are.
  static Result<Pretokenizer> create(std::string_view name);

  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;
  ~Pretokenizer();

  /// text is valid UTF-8. The words are views into it, in order, none of them empty.
  /// Throws std::bad_alloc if an expression runs out of memory.
  [[nodiscard]] std::vector<std::string_view> split(std::string_view text) const;

  [[nodiscard]] const PretokenizerTraits& traits() const { return traits_; }

 private:
  class Expression;
  Pretokenizer(std::vector<Expression> expressions, const PretokenizerTraits& traits);

  std::vector<Expression> expressions_;
  PretokenizerTraits traits_;
};

/// Every name that create() accepts, sorted.
[[nodiscard]] std::vector<std::string_view> known_pretokenizers();

}  // namespace recua::tokenizer
