#pragma once
/// Learns a byte-level BPE vocabulary ("gpt2") from text.
///
/// A word starts as its bytes; the pair of neighbours that is most frequent in the text becomes one
/// symbol, again and again, until the vocabulary is full or no pair occurs often enough. Of pairs
/// that are equally frequent the one whose left symbol is older wins, then the one whose right is;
/// so the same text gives the same vocabulary everywhere.
/// Ids: 0 to 255 are the bytes, merged tokens follow in the order in which they were made, then the
/// control token kEndOfText, which begins and ends texts. A pair whose text is a token already is
/// not merged: then each token is made by one merge, and ByteLevelBpe cuts every word that the
/// trainer saw into the parts that the trainer ended with.
/// Time: O(n log n) in the bytes of the distinct words. Memory: about 40 bytes for each of them.
/// Threads: one at a time. Source: Sennrich et al. 2016, Radford et al. 2019.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/vocab_data.h"

namespace recua::tokenizer {

inline constexpr std::string_view kEndOfText = "<|endoftext|>";

struct BpeTrainOptions {
  std::size_t vocab_size = 4096;  // Tokens in all, from kBpeVocabMin to kBpeVocabMax.
  std::string pre = "gpt-2";      // How text is cut into words: tokenizer/pretokenizer_schemes.h.
  std::uint64_t count_min = 2;    // A pair that occurs less often is not merged. At least 1.
};

inline constexpr std::size_t kBpeVocabMin = 256 + 1 + 1;  // Bytes, one merge, kEndOfText.
inline constexpr std::size_t kBpeVocabMax = std::size_t{1} << 20;

struct TrainedBpe {
  /// Fewer tokens than asked for if no pair was frequent enough.
  VocabData vocab = {};
  std::size_t n_words = 0;           // In the text.
  std::size_t n_words_distinct = 0;  // Of them.
  std::size_t n_bytes = 0;           // Of the text.
  std::size_t n_tokens = 0;          // Of the text, cut with the new vocabulary.
};

class BpeTrainer {
 public:
  /// kInvalidArgument: an option out of range. kUnsupported: an unknown pre.
  static Result<BpeTrainer> create(const BpeTrainOptions& options);

  /// Counts the words of a text, which begins and ends at words. Valid UTF-8.
  /// kResourceExhausted: more than 2 GiB of distinct words.
  Result<void> add(std::string_view text);

  /// kInvalidArgument: the text has no pair to merge. Afterwards the trainer may get more text.
  [[nodiscard]] Result<TrainedBpe> train() const;

 private:
  BpeTrainer(BpeTrainOptions options, Pretokenizer pretokenizer);

  BpeTrainOptions options_;
  Pretokenizer pretokenizer_;
  std::unordered_map<std::string, std::size_t> index_;  // Of a word in words_, counts_.
  std::vector<const std::string*> words_;               // By first appearance.
  std::vector<std::uint64_t> counts_;
  std::size_t n_bytes_ = 0;
  std::size_t n_distinct_bytes_ = 0;
};

}  // namespace recua::tokenizer
