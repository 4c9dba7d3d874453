// Candidates wait in a heap and the symbols form a list, so each merge costs O(log n). A merge
// makes other candidates stale; they are recognized when they come up, since a live pair is still
// as long as when it was proposed.
#include "tokenizer/sentencepiece.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <queue>
#include <string>

#include "base/check.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

struct Symbol {
  std::size_t begin = 0;
  std::size_t n_bytes = 0;  // 0: merged into the symbol before it.
  std::size_t previous = kNone;
  std::size_t next = kNone;
};

struct Candidate {
  float score = 0;
  std::size_t left = 0;
  std::size_t n_bytes = 0;  // Of both together.

  bool operator<(const Candidate& other) const {  // The greatest comes first.
    return score != other.score ? score < other.score : left > other.left;
  }
};

std::vector<Symbol> characters_of(std::string_view text) {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    const std::size_t n_bytes = step.valid ? step.n_bytes : 1;
    const std::size_t i = symbols.size();
    symbols.push_back({.begin = at, .n_bytes = n_bytes, .previous = i - 1, .next = i + 1});
    at += n_bytes;
  }
  if (!symbols.empty()) {
    symbols.front().previous = kNone;
    symbols.back().next = kNone;
  }
  return symbols;
}

// SentencePiece knows one kind of space: U+2581 in a text is one already.
constexpr std::string_view kMark = "\xE2\x96\x81";

std::string unify_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t mark = std::min(text.find(kMark, at), text.size());
    out += text.substr(at, mark - at);
    if (mark < text.size()) out += ' ';
    at = mark + kMark.size();
  }
  return out;
}

std::size_t pair_index(char left, char right) {
  return std::size_t{static_cast<unsigned char>(left)} << 8U | static_cast<unsigned char>(right);
}

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

}  // namespace

SentencePiece::SentencePiece(const Vocabulary& vocabulary, std::size_t part_bytes)
    : vocabulary_(&vocabulary), part_bytes_(part_bytes) {
  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    const std::string_view piece = vocabulary.piece(static_cast<TokenId>(i));
    piece_bytes_max_ = std::max(piece_bytes_max_, piece.size());
    for (std::size_t at = 1; at < piece.size(); ++at) {
      neighbours_.set(pair_index(piece[at - 1], piece[at]));
    }
  }
}

// No character of the text spans a byte that begins one, valid or not; nor does a mark.
std::size_t SentencePiece::part_end(std::string_view text, std::size_t begin) const {
  for (std::size_t at = begin + part_bytes_; at < text.size(); ++at) {
    if (continues_character(text[at])) continue;
    const char left = text.substr(0, at).ends_with(kMark) ? ' ' : text[at - 1];
    const char right = text.substr(at).starts_with(kMark) ? ' ' : text[at];
    if (!neighbours_.test(pair_index(left, right))) return at;
  }
  return text.size();
}

void SentencePiece::encode(std::string_view text, bool space_first,
                           std::vector<TokenId>& out) const {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = part_end(text, begin);
    std::string part = unify_spaces(text.substr(begin, end - begin));
    if (begin == 0 && space_first) part.insert(0, 1, ' ');
    encode_part(part, out);
    begin = end;
  }
}

void SentencePiece::encode_part(std::string_view view, std::vector<TokenId>& out) const {
  std::vector<Symbol> symbols = characters_of(view);
  std::priority_queue<Candidate> candidates;
  const auto propose = [&](std::size_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const std::size_t n_bytes = symbols[left].n_bytes + symbols[symbols[left].next].n_bytes;
    if (n_bytes > piece_bytes_max_) return;
    const TokenId id = vocabulary_->find_normal(view.substr(symbols[left].begin, n_bytes));
    if (id == kNoToken) return;
    const float score = vocabulary_->scores()[static_cast<std::size_t>(id)];
    candidates.push({.score = score, .left = left, .n_bytes = n_bytes});
  };

  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) propose(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbols[best.left];
    if (left.n_bytes == 0 || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    if (left.n_bytes + right.n_bytes != best.n_bytes) continue;
    left.n_bytes = best.n_bytes;
    right.n_bytes = 0;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    propose(left.previous);
    propose(best.left);
  }
  if (symbols.empty()) return;
  for (std::size_t i = 0; i != kNone; i = symbols[i].next) {
    append_ids(view.substr(symbols[i].begin, symbols[i].n_bytes), out);
  }
}

void SentencePiece::append_ids(std::string_view piece, std::vector<TokenId>& out) const {
  if (const TokenId id = vocabulary_->find_normal(piece); id != kNoToken) {
    out.push_back(id);
    return;
  }
  const auto has_byte_token = [this](char c) {
    return vocabulary_->byte_token(static_cast<unsigned char>(c)) != kNoToken;
  };
  if (!std::ranges::all_of(piece, has_byte_token)) {
    RECUA_CHECK(vocabulary_->unk != kNoToken);  // Vocabulary::create() saw to it.
    out.push_back(vocabulary_->unk);
    return;
  }
  for (const char c : piece) {
    out.push_back(vocabulary_->byte_token(static_cast<unsigned char>(c)));
  }
}

}  // namespace recua::tokenizer
