#pragma once
/// From the bytes of a token to its id: a hash table of ids alone, since the vocabulary has the
/// bytes. A node per token, as std::unordered_map has, would take four times as much memory.
///
/// Linear probing, at most half full. Threads: never changes once it is filled.

#include <bit>
#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include "tokenizer/token.h"

namespace recua::tokenizer {

class PieceIndex {
 public:
  /// For at most n tokens.
  explicit PieceIndex(std::size_t n = 0) : ids_(std::bit_ceil(2 * n + 1), kNoToken) {}

  /// piece: the bytes of an id that was added. The first of equal tokens stays.
  template <class Piece>
  void add(TokenId id, Piece piece) {
    TokenId& slot = ids_[slot_of(piece(id), piece)];
    if (slot == kNoToken) slot = id;
  }
  /// kNoToken: there is none of these bytes.
  template <class Piece>
  [[nodiscard]] TokenId find(std::string_view bytes, Piece piece) const {
    return ids_[slot_of(bytes, piece)];
  }

 private:
  /// Where these bytes are, or would be.
  template <class Piece>
  [[nodiscard]] std::size_t slot_of(std::string_view bytes, Piece piece) const {
    const std::size_t mask = ids_.size() - 1;
    std::size_t slot = std::hash<std::string_view>()(bytes) & mask;
    while (ids_[slot] != kNoToken && piece(ids_[slot]) != bytes) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<TokenId> ids_;
};

}  // namespace recua::tokenizer
