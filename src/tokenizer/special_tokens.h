#pragma once
/// Finds the tokens that are recognized in the text itself, before it is split: control and
/// user-defined ones.
///
/// The first match wins, and of several that begin at one place the longest. Time: the length of
/// the text times that of the longest such token, whatever the number of tokens. Threads: never
/// changes after the last add().

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/token.h"

namespace recua::tokenizer {

class SpecialTokens {
 public:
  /// text must not be empty. If two tokens have one text, the first stays.
  void add(std::string_view text, TokenId id);

  struct Match {
    std::size_t offset = 0;
    std::size_t n_bytes = 0;
    TokenId id = kNoToken;
  };
  /// The first token in text at or after offset `from`.
  [[nodiscard]] std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  static std::uint64_t edge(std::size_t node, char byte) {
    return static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
  }

  // A trie: node 0 is the root, children_ leads from (node, next byte) to a node, ends_ has for
  // each node the token that ends there.
  std::vector<TokenId> ends_{kNoToken};
  std::unordered_map<std::uint64_t, std::size_t> children_;
  bool first_bytes_[256] = {};  // Most bytes begin no special token: skip them at once.
};

}  // namespace recua::tokenizer
