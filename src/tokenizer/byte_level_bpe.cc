// Candidates wait in a heap and the symbols of a word form a list, so each merge costs O(log n). A
// candidate is stale if its two symbols are no longer the ones it was made for.
#include "tokenizer/byte_level_bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/random.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/nfc.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

struct Symbol {
  std::uint32_t id = kNone;  // kNone: merged into the symbol before it.
  std::uint32_t previous = kNone;
  std::uint32_t next = kNone;
  std::uint32_t begin = 0;  // Its first byte in the word.
};

struct Candidate {
  std::uint32_t rank = 0;
  std::uint32_t left = 0;  // Index of the symbol.

  bool operator>(const Candidate& other) const {  // The smallest comes first.
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

}  // namespace

MergeTable::MergeTable(std::size_t n_merges) : slots_(std::bit_ceil(2 * n_merges + 2), kNone) {
  merges_.reserve(n_merges);
}

std::size_t MergeTable::slot_of(std::uint32_t left, std::uint32_t right) const {
  const std::size_t mask = slots_.size() - 1;
  const auto is_other = [&](std::uint32_t place) {
    return merges_[place].left != left || merges_[place].right != right;
  };
  std::size_t slot = static_cast<std::size_t>(mix(std::uint64_t{left} << 32 | right)) & mask;
  while (slots_[slot] != kNone && is_other(slots_[slot])) slot = (slot + 1) & mask;
  return slot;
}

void MergeTable::add(const Merge& merge) {
  std::uint32_t& place = slots_[slot_of(merge.left, merge.right)];
  if (place != kNone) return;
  place = static_cast<std::uint32_t>(merges_.size());
  merges_.push_back(merge);
}

const MergeTable::Merge* MergeTable::find(std::uint32_t left, std::uint32_t right) const {
  const std::uint32_t place = slots_[slot_of(left, right)];
  return place != kNone ? &merges_[place] : nullptr;
}

/// Reused from word to word, so that a text costs a few allocations and not a few per word.
struct ByteLevelBpe::Scratch {
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

ByteLevelBpe::ByteLevelBpe(const Vocabulary& vocabulary, Pretokenizer pretokenizer,
                           std::size_t n_merges)
    : vocabulary_(&vocabulary), pretokenizer_(std::move(pretokenizer)), merges_(n_merges) {}

Result<ByteLevelBpe> ByteLevelBpe::create(const VocabData& data, const Vocabulary& vocabulary) {
  if (data.merges.empty()) {
    return Error{ErrorCode::kCorrupt,
                 "tokenizer.ggml.merges is missing or empty; a \"gpt2\" vocabulary needs it"};
  }
  if (data.merges.size() > kNone / 4) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tokenizer.ggml.merges has {} entries, too many", data.merges.size())};
  }
  RECUA_ASSIGN_OR_RETURN(Pretokenizer pretokenizer, Pretokenizer::create(data.pre));
  ByteLevelBpe bpe(vocabulary, std::move(pretokenizer), data.merges.size());
  for (unsigned byte = 0; byte < 256; ++byte) {
    bpe.byte_symbols_[byte] = bpe.symbol_of(std::string(1, static_cast<char>(byte)));
  }
  for (std::size_t rank = 0; rank < data.merges.size(); ++rank) {
    RECUA_RETURN_IF_ERROR(bpe.add_merge(rank, data.merges[rank]));
  }
  return bpe;
}

std::uint32_t ByteLevelBpe::symbol_of(const std::string& bytes) {
  TokenId id = vocabulary_->find_normal(bytes);
  if (id == kNoToken) {  // Some files mark tokens that merges make as user-defined.
    id = vocabulary_->find_special(bytes);
    if (id != kNoToken && vocabulary_->type(id) != TokenType::kUserDefined) id = kNoToken;
  }
  if (id != kNoToken) return static_cast<std::uint32_t>(id);
  const auto next = static_cast<std::uint32_t>(vocabulary_->size() + other_symbols_.size());
  return other_symbols_.try_emplace(bytes, next).first->second;
}

Result<void> ByteLevelBpe::add_merge(std::size_t rank, std::string_view written) {
  const std::size_t space = written.find(' ', 1);  // The left part is not empty, but may be " ".
  if (space == std::string_view::npos || space + 1 == written.size()) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tokenizer.ggml.merges[{}] is {:?}; must be two parts with a space "
                             "between them",
                             rank, written.substr(0, 80))};
  }
  const std::string left = from_byte_level(written.substr(0, space));
  const std::string right = from_byte_level(written.substr(space + 1));
  merges_.add({.left = symbol_of(left),
               .right = symbol_of(right),
               .rank = static_cast<std::uint32_t>(rank),
               .result = symbol_of(left + right)});
  return {};
}

void ByteLevelBpe::encode(std::string_view text, bool nfc, std::vector<TokenId>& out) const {
  std::string valid = replace_invalid_utf8(text);
  if (nfc && traits().nfc) valid = to_nfc(valid);
  Scratch scratch;
  for (const std::string_view word : pretokenizer_.split(valid)) encode_word(word, scratch, out);
}

void ByteLevelBpe::encode_word(std::string_view word, Scratch& scratch,
                               std::vector<TokenId>& out) const {
  if (traits().whole_words) {
    if (const TokenId id = vocabulary_->find_normal(word); id != kNoToken) {
      out.push_back(id);
      return;
    }
  }
  RECUA_CHECK(word.size() < kNone);
  auto& [symbols, heap] = scratch;
  const auto n = static_cast<std::uint32_t>(word.size());
  symbols.resize(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    symbols[i] = {.id = byte_symbols_[static_cast<unsigned char>(word[i])],
                  .previous = i == 0 ? kNone : i - 1,
                  .next = i + 1 == n ? kNone : i + 1,
                  .begin = i};
  }
  heap.clear();
  const auto propose = [&](std::uint32_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const auto* merge = merges_.find(symbols[left].id, symbols[symbols[left].next].id);
    if (merge == nullptr) return;
    heap.push_back({.rank = merge->rank, .left = left});
    std::ranges::push_heap(heap, std::greater<>());
  };

  for (std::uint32_t i = 0; i < n; ++i) propose(i);
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, std::greater<>());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[best.left];
    if (left.id == kNone || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    const auto* merge = merges_.find(left.id, right.id);
    if (merge == nullptr || merge->rank != best.rank) continue;
    left.id = merge->result;
    right.id = kNone;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    propose(left.previous);
    propose(best.left);
  }
  for (std::uint32_t i = 0; i != kNone; i = symbols[i].next) {
    const std::uint32_t end = symbols[i].next == kNone ? n : symbols[symbols[i].next].begin;
    append_ids(symbols[i].id, word.substr(symbols[i].begin, end - symbols[i].begin), out);
  }
}

// A symbol that only merges know becomes the tokens of its bytes.
void ByteLevelBpe::append_ids(std::uint32_t symbol, std::string_view bytes,
                              std::vector<TokenId>& out) const {
  if (symbol < vocabulary_->size()) {
    out.push_back(static_cast<TokenId>(symbol));
    return;
  }
  for (const char c : bytes) {
    const TokenId id = vocabulary_->byte_token(static_cast<unsigned char>(c));
    out.push_back(id != kNoToken ? id : vocabulary_->unk);
    RECUA_CHECK(out.back() != kNoToken);  // Vocabulary::create() saw to it.
  }
}

}  // namespace recua::tokenizer
