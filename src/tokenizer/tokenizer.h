#pragma once
/// Text to token ids and back, for the two kinds of vocabulary that GGUF files carry for decoders:
/// SentencePiece BPE by score with byte fallback ("llama"), and byte-level BPE ("gpt2").
///
/// Text is bytes. Where it is not valid UTF-8, SentencePiece vocabularies keep each invalid byte as
/// a byte token; byte-level ones see U+FFFD for each maximal invalid part (Unicode 15, section 3.9,
/// "U+FFFD substitution of maximal subparts"), as the models' own tokenizers do.
/// Time: O(n log n) in the length of the text, whatever is in it.
/// Threads: a Tokenizer never changes after create(); any number of threads may use one.
/// Source: Sennrich et al. 2016 (BPE), Kudo and Richardson 2018 (SentencePiece), Radford et al.
/// 2019
///   (byte-level BPE).

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/token.h"
#include "tokenizer/vocab_data.h"

namespace recua::tokenizer {

struct EncodeOptions {
  /// Put what the model expects around a text: BOS in front, EOS behind, where its vocabulary asks.
  bool add_bos = true;
  /// Text that spells a control token ("<|im_end|>") becomes that token. False: it is text like any
  /// other; use that for what a stranger wrote. User-defined tokens ("<think>") are found either
  /// way, since the model has never seen their text in other tokens. Of several that begin at one
  /// place the longest wins.
  bool parse_special = true;
  /// Unicode NFC first, for vocabularies whose model was trained so (Qwen). False gives the ids of
  /// engines that never normalize.
  bool normalize = true;
  /// The text begins one: SentencePiece puts a space in front where its vocabulary asks. False
  /// where the ids go on after those of an earlier text, as in DecodeOptions.
  bool from_start = true;
};

struct DecodeOptions {
  /// Control tokens appear as their text; false: they are left out.
  bool special_text = false;
  /// The ids are a whole text: the space that SentencePiece puts in front of it is taken away
  /// again. False where they go on after earlier text, such as generated ids after a prompt.
  bool from_start = true;
};

class Tokenizer {
 public:
  /// kCorrupt: arrays of different lengths, ids out of range, missing or malformed merges or types.
  /// kUnsupported: a model or pre-tokenizer that we do not know; the message lists the known ones.
  static Result<Tokenizer> create(VocabData data);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  [[nodiscard]] std::vector<TokenId> encode(std::string_view text,
                                            const EncodeOptions& options = {}) const;

  /// The inverse of encode(), as bytes: a text that was cut inside a character stays cut. For whole
  /// characters piece by piece see tokenizer/detokenizer.h. Ids out of range give nothing.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids,
                                   const DecodeOptions& options = {}) const;

  /// The bytes that a token stands for: perhaps part of a character, with leading spaces. Control
  /// and unknown tokens give their text, or nothing if special_text is false; so do ids out of
  /// range. The view lives as long as the tokenizer.
  [[nodiscard]] std::string_view piece(TokenId id, bool special_text = true) const;

  /// The token that stands for exactly these bytes (see piece()), else nullopt. Normal tokens win
  /// over special ones, special ones over byte tokens.
  [[nodiscard]] std::optional<TokenId> piece_to_id(std::string_view bytes) const;

  /// True if generation stops at this token: EOS, EOT, EOM, and tokens with a name that is known to
  /// mean so ("<|eot_id|>", "<|im_end|>", ...), since many files do not list them all.
  [[nodiscard]] bool is_end_of_generation(TokenId id) const;
  /// True for control and unknown tokens: they are structure, not text.
  [[nodiscard]] bool special(TokenId id) const;
  /// The type of a token; kUnused for ids out of range.
  [[nodiscard]] TokenType type(TokenId id) const;

  /// The number of tokens. A model may have more rows of logits than that (padding).
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] std::optional<TokenId> bos() const;
  [[nodiscard]] std::optional<TokenId> eos() const;
  [[nodiscard]] std::optional<TokenId> eot() const;
  /// Whether encode() puts BOS in front when asked with add_bos.
  [[nodiscard]] bool adds_bos() const;
  [[nodiscard]] bool adds_eos() const;
  /// Whether encode() puts a space in front of a text, which decode() takes away.
  [[nodiscard]] bool adds_space_prefix() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<const State> state);

  std::unique_ptr<const State> state_;
};

/// decode() one token at a time. The tokenizer must outlive it. Threads: one at a time.
class PieceReader {
 public:
  explicit PieceReader(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  /// The bytes that id adds to the text, valid as long as the tokenizer.
  [[nodiscard]] std::string_view next(TokenId id);

 private:
  const Tokenizer* tokenizer_;
  bool special_text_;
  bool drop_space_;  // The next piece begins where encode() puts a space.
};

}  // namespace recua::tokenizer
