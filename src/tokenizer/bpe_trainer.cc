// All distinct words lie one behind the other as linked symbols. Each pair knows where it occurs,
// so a merge touches those places only; a heap holds the pairs by count. Places and heap entries
// are not removed when they become wrong but recognized when their turn comes.
#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/nfc.h"

namespace recua::tokenizer {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t kDistinctBytesMax = std::size_t{1} << 31;

// Text is cut into pieces of about this size, so that the list of their words stays small.
constexpr std::size_t kPieceBytes = std::size_t{1} << 22;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Where the first piece of text ends: between a letter and a line feed, since no scheme has a word
// that goes on there, or looks back over it.
std::size_t piece_end(std::string_view text) {
  for (std::size_t at = std::min(kPieceBytes, text.size()); at < text.size(); ++at) {
    if (text[at] == '\n' && is_letter(text[at - 1])) return at;
  }
  return text.size();
}

struct Symbol {
  std::uint32_t id = kNone;  // kNone: merged into the one before.
  std::uint32_t previous = kNone;
  std::uint32_t next = kNone;
  std::uint32_t word = 0;
};

struct Pair {
  std::uint64_t count = 0;
  std::vector<std::uint32_t> places;  // Of the left symbol; some no longer hold the pair.
};

struct Candidate {
  std::uint64_t count = 0;
  std::uint64_t key = 0;  // See key_of().

  bool operator<(const Candidate& other) const {  // The largest comes first.
    return count != other.count ? count < other.count : key > other.key;
  }
};

std::uint64_t key_of(std::uint32_t left, std::uint32_t right) {
  return std::uint64_t{left} << 32 | right;
}

class Merger {
 public:
  Merger(const std::vector<const std::string*>& words, const std::vector<std::uint64_t>& counts)
      : counts_(&counts) {
    for (unsigned byte = 0; byte < 256; ++byte) add_token(std::string(1, static_cast<char>(byte)));
    for (std::uint32_t w = 0; w < words.size(); ++w) append_word(*words[w], w);
    for (std::uint32_t at = 0; at < symbols_.size(); ++at) count_pair(at);
    propose_touched();
  }

  // Merges the most frequent pair that may be; false: none is left.
  bool merge_best(std::uint64_t count_min) {
    while (!candidates_.empty()) {
      const Candidate best = candidates_.top();
      candidates_.pop();
      const auto found = pairs_.find(best.key);
      if (found == pairs_.end()) continue;
      if (found->second.count != best.count) {  // It has become rarer since.
        if (found->second.count > 0 && found->second.count < best.count)
          candidates_.push({.count = found->second.count, .key = best.key});
        continue;
      }
      if (best.count < count_min) return false;
      const auto left = static_cast<std::uint32_t>(best.key >> 32);
      const auto right = static_cast<std::uint32_t>(best.key);
      std::vector<std::uint32_t> places = std::move(found->second.places);
      pairs_.erase(found);
      std::string text = tokens_[left] + tokens_[right];
      if (texts_.contains(text)) continue;  // Stays two symbols for good.
      merges_.emplace_back(left, right);
      merge(left, right, places, add_token(std::move(text)));
      return true;
    }
    return false;
  }

  [[nodiscard]] const std::vector<std::string>& tokens() const { return tokens_; }
  [[nodiscard]] const std::vector<std::pair<std::uint32_t, std::uint32_t>>& merges() const {
    return merges_;
  }
  [[nodiscard]] std::size_t n_tokens_of_text() const {
    std::size_t n = 0;
    for (const Symbol& symbol : symbols_) {
      if (symbol.id != kNone) n += static_cast<std::size_t>((*counts_)[symbol.word]);
    }
    return n;
  }

 private:
  std::uint32_t add_token(std::string text) {
    texts_.insert(text);
    tokens_.push_back(std::move(text));
    return static_cast<std::uint32_t>(tokens_.size() - 1);
  }

  void append_word(std::string_view word, std::uint32_t index) {
    const auto begin = static_cast<std::uint32_t>(symbols_.size());
    const auto n = static_cast<std::uint32_t>(word.size());
    for (std::uint32_t i = 0; i < n; ++i) {
      symbols_.push_back({.id = static_cast<unsigned char>(word[i]),
                          .previous = i == 0 ? kNone : begin + i - 1,
                          .next = i + 1 == n ? kNone : begin + i + 1,
                          .word = index});
    }
  }

  [[nodiscard]] std::uint64_t weight(std::uint32_t at) const {
    return (*counts_)[symbols_[at].word];
  }

  // Adds the pair that begins here, if there is one.
  void count_pair(std::uint32_t at) {
    if (at == kNone || symbols_[at].next == kNone) return;
    const std::uint64_t key = key_of(symbols_[at].id, symbols_[symbols_[at].next].id);
    Pair& pair = pairs_[key];
    pair.count += weight(at);
    pair.places.push_back(at);
    touched_.push_back(key);
  }

  void discount_pair(std::uint32_t at) {
    if (at == kNone || symbols_[at].next == kNone) return;
    const auto found = pairs_.find(key_of(symbols_[at].id, symbols_[symbols_[at].next].id));
    if (found == pairs_.end()) return;  // Merged just now, or never to be merged.
    RECUA_DCHECK(found->second.count >= weight(at));
    found->second.count -= weight(at);
  }

  // places: where the pair was seen, of which the first of two that overlap is taken.
  void merge(std::uint32_t left, std::uint32_t right, std::vector<std::uint32_t>& places,
             std::uint32_t result) {
    std::ranges::sort(places);
    for (const std::uint32_t at : places) {
      Symbol& first = symbols_[at];
      if (first.id != left || first.next == kNone || symbols_[first.next].id != right) continue;
      Symbol& second = symbols_[first.next];
      discount_pair(first.previous);
      discount_pair(first.next);
      first.id = result;
      second.id = kNone;
      first.next = second.next;
      if (first.next != kNone) symbols_[first.next].previous = at;
      count_pair(first.previous);
      count_pair(at);
    }
    propose_touched();
  }

  void propose_touched() {
    std::ranges::sort(touched_);
    const auto repeated = std::ranges::unique(touched_);
    touched_.erase(repeated.begin(), repeated.end());
    for (const std::uint64_t key : touched_) {
      const auto found = pairs_.find(key);
      if (found != pairs_.end() && found->second.count > 0)
        candidates_.push({.count = found->second.count, .key = key});
    }
    touched_.clear();
  }

  const std::vector<std::uint64_t>* counts_;
  std::vector<Symbol> symbols_;
  std::vector<std::string> tokens_;
  std::unordered_set<std::string> texts_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> merges_;
  std::unordered_map<std::uint64_t, Pair> pairs_;
  std::priority_queue<Candidate> candidates_;
  std::vector<std::uint64_t> touched_;  // Pairs that have become more frequent.
};

}  // namespace

BpeTrainer::BpeTrainer(BpeTrainOptions options, Pretokenizer pretokenizer)
    : options_(std::move(options)), pretokenizer_(std::move(pretokenizer)) {}

Result<BpeTrainer> BpeTrainer::create(const BpeTrainOptions& options) {
  if (options.vocab_size < kBpeVocabMin || options.vocab_size > kBpeVocabMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the vocabulary size is {}, must be from {} (256 bytes, one merge and "
                             "{}) to {}",
                             options.vocab_size, kBpeVocabMin, kEndOfText, kBpeVocabMax)};
  }
  if (options.count_min == 0) {
    return Error{ErrorCode::kInvalidArgument, "the least count of a pair is 0, must be at least 1"};
  }
  RECUA_ASSIGN_OR_RETURN(Pretokenizer pretokenizer, Pretokenizer::create(options.pre));
  return BpeTrainer(options, std::move(pretokenizer));
}

Result<void> BpeTrainer::add(std::string_view text) {
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, piece_end(text));
    text.remove_prefix(piece.size());
    n_bytes_ += piece.size();
    const std::string normal = pretokenizer_.traits().nfc ? to_nfc(piece) : std::string(piece);
    for (const std::string_view word : pretokenizer_.split(normal)) {
      const auto [entry, is_new] = index_.try_emplace(std::string(word), words_.size());
      if (is_new) {
        words_.push_back(&entry->first);
        counts_.push_back(0);
        n_distinct_bytes_ += word.size();
      }
      ++counts_[entry->second];
    }
    if (n_distinct_bytes_ > kDistinctBytesMax) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("the distinct words have {} bytes, need at most {}: train on a part "
                               "of the text",
                               n_distinct_bytes_, kDistinctBytesMax)};
    }
  }
  return ok();
}

Result<TrainedBpe> BpeTrainer::train() const {
  Merger merger(words_, counts_);
  const std::size_t n_merged_tokens = options_.vocab_size - 1;  // And kEndOfText.
  while (merger.tokens().size() < n_merged_tokens && merger.merge_best(options_.count_min)) {
  }
  if (merger.merges().empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("no two neighbours occur {} times within words: the text is too short "
                             "to learn a vocabulary from",
                             options_.count_min)};
  }

  TrainedBpe trained{.n_words_distinct = words_.size(),
                     .n_bytes = n_bytes_,
                     .n_tokens = merger.n_tokens_of_text()};
  for (const std::uint64_t count : counts_) trained.n_words += static_cast<std::size_t>(count);
  VocabData& vocab = trained.vocab;
  vocab.model = "gpt2";
  vocab.pre = options_.pre;
  for (const std::string& token : merger.tokens()) vocab.tokens.push_back(to_byte_level(token));
  for (const auto& [left, right] : merger.merges())
    vocab.merges.push_back(vocab.tokens[left] + " " + vocab.tokens[right]);
  vocab.types.assign(vocab.tokens.size(), static_cast<std::int32_t>(TokenType::kNormal));
  vocab.tokens.emplace_back(kEndOfText);
  vocab.types.push_back(static_cast<std::int32_t>(TokenType::kControl));
  vocab.bos = vocab.eos = static_cast<std::int32_t>(vocab.tokens.size() - 1);
  vocab.add_bos = true;
  vocab.add_eos = false;
  return trained;
}

}  // namespace recua::tokenizer
