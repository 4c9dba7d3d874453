#pragma once
/// Byte-level BPE: a word starts as its bytes, and of all neighbours that the model merges, the
/// pair that is first in its list becomes one, the leftmost first, until none is left.
///
/// Source: Sennrich et al. 2016; Radford et al. 2019.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/token.h"
#include "tokenizer/vocab_data.h"
#include "tokenizer/vocabulary.h"

namespace recua::tokenizer {

/// The merges of a vocabulary, by pair: a hash table of places in their list, filled once and then
/// only read. (With the merges in the table itself half of its memory is empty.)
class MergeTable {
 public:
  struct Merge {
    std::uint32_t left = 0, right = 0;
    std::uint32_t rank = 0;    // 0 is the most wanted.
    std::uint32_t result = 0;  // The symbol that both become.
  };

  explicit MergeTable(std::size_t n_merges);
  /// If the pair is there already, the first one stays. At most n_merges times.
  void add(const Merge& merge);
  [[nodiscard]] const Merge* find(std::uint32_t left, std::uint32_t right) const;

 private:
  [[nodiscard]] std::size_t slot_of(std::uint32_t left, std::uint32_t right) const;

  std::vector<Merge> merges_;
  std::vector<std::uint32_t> slots_;  // A power of two, at most half full.
};

class ByteLevelBpe {
 public:
  /// Borrows the vocabulary, which must outlive it and stay where it is.
  /// kCorrupt: merges are missing or malformed. kUnsupported: unknown data.pre.
  static Result<ByteLevelBpe> create(const VocabData& data, const Vocabulary& vocabulary);

  /// Appends the ids of text, any bytes: invalid UTF-8 becomes U+FFFD. nfc: normalize if the
  /// vocabulary is one that asks for it.
  void encode(std::string_view text, bool nfc, std::vector<TokenId>& out) const;

  [[nodiscard]] const PretokenizerTraits& traits() const { return pretokenizer_.traits(); }

 private:
  struct Scratch;
  ByteLevelBpe(const Vocabulary& vocabulary, Pretokenizer pretokenizer, std::size_t n_merges);
  Result<void> add_merge(std::size_t rank, std::string_view written);
  std::uint32_t symbol_of(const std::string& bytes);
  void encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;
  void append_ids(std::uint32_t symbol, std::string_view bytes, std::vector<TokenId>& out) const;

  const Vocabulary* vocabulary_;
  Pretokenizer pretokenizer_;
  MergeTable merges_;
  // A symbol is a token id, or, from vocabulary size on, text that only merges know.
  std::unordered_map<std::string, std::uint32_t> other_symbols_;
  std::array<std::uint32_t, 256> byte_symbols_{};
};

}  // namespace recua::tokenizer
