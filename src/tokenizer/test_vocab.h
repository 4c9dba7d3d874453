#pragma once
/// Two tiny vocabularies for tests and fuzzing: every byte has a token, a few words do.

#include <string>
#include <utility>

#include "tokenizer/byte_level.h"
#include "tokenizer/vocab_data.h"

namespace recua::tokenizer {

inline void add_token(VocabData& data, std::string text, TokenType type, float score = 0) {
  data.tokens.push_back(std::move(text));
  data.types.push_back(static_cast<std::int32_t>(type));
  if (data.model == "llama") data.scores.push_back(score);
}

/// 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes, then pieces from 259 on, then <think>.
inline VocabData sentencepiece_test_vocab() {
  VocabData data;
  data.model = "llama";
  add_token(data, "<unk>", TokenType::kUnknown);
  add_token(data, "<s>", TokenType::kControl);
  add_token(data, "</s>", TokenType::kControl);
  constexpr char kHex[] = "0123456789ABCDEF";
  for (unsigned byte = 0; byte < 256; ++byte) {
    add_token(data, {'<', '0', 'x', kHex[byte / 16], kHex[byte % 16], '>'}, TokenType::kByte);
  }
  float score = 0;
  for (const char* piece : {"aa", "ab", "aaaa",
                            "\xE2\x96\x81"
                            "a",
                            "\xE2\x96\x81", "a", "b", "c", "\xC3\xA9", "aaaaaaaa", "abab"}) {
    add_token(data, piece, TokenType::kNormal, --score);
  }
  add_token(data, "<think>", TokenType::kUserDefined);
  data.unk = 0;
  data.bos = 1;
  data.eos = 2;
  return data;
}

/// 0 to 255 the bytes, then the results of the merges from 256 on, then <|end|>, <|endoftext|> and
/// <think>. Both "<|end|>" and "<|end|>x" are tokens, the second user-defined.
inline VocabData byte_level_test_vocab() {
  VocabData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    add_token(data, to_byte_level({&one, 1}), TokenType::kNormal);
  }
  const std::pair<const char*, const char*> merges[] = {
      {"a", "a"}, {"a", "b"}, {" ", "a"}, {"aa", "aa"}, {"ab", "ab"}, {"\xC3", "\xA9"}};
  for (const auto& [left, right] : merges) {
    data.merges.push_back(to_byte_level(left) + " " + to_byte_level(right));
    add_token(data, to_byte_level(std::string(left) + right), TokenType::kNormal);
  }
  add_token(data, "<|end|>", TokenType::kControl);
  add_token(data, "<|endoftext|>", TokenType::kControl);
  add_token(data, "<think>", TokenType::kUserDefined);
  add_token(data, "<|end|>x", TokenType::kUserDefined);
  data.eos = static_cast<std::int32_t>(data.tokens.size()) - 3;
  return data;
}

}  // namespace recua::tokenizer
