#include "tokenizer/special_tokens.h"

#include "base/check.h"

namespace recua::tokenizer {

void SpecialTokens::add(std::string_view text, TokenId id) {
  RECUA_CHECK(!text.empty());
  first_bytes_[static_cast<unsigned char>(text.front())] = true;
  std::size_t node = 0;
  for (const char byte : text) {
    const auto [child, is_new] = children_.try_emplace(edge(node, byte), ends_.size());
    if (is_new) ends_.push_back(kNoToken);
    node = child->second;
  }
  if (ends_[node] == kNoToken) ends_[node] = id;
}

std::optional<SpecialTokens::Match> SpecialTokens::find(std::string_view text,
                                                        std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_[static_cast<unsigned char>(text[begin])]) continue;
    Match longest;
    std::size_t node = 0;
    for (std::size_t i = begin; i < text.size(); ++i) {
      const auto child = children_.find(edge(node, text[i]));
      if (child == children_.end()) break;
      node = child->second;
      if (ends_[node] != kNoToken) {
        longest = {.offset = begin, .n_bytes = i + 1 - begin, .id = ends_[node]};
      }
    }
    if (longest.id != kNoToken) return longest;
  }
  return std::nullopt;
}

}  // namespace recua::tokenizer
