// Any bytes through small vocabularies and back, and any lines as a vocabulary.
//
// The first byte chooses: bits 0 to 4 a pre-tokenizer, bit 5 byte-level BPE or SentencePiece, bit 6
// whether special tokens are parsed, bit 7 that the rest begins with a vocabulary: lines up to the
// first empty one, each with a digit for its type, and for BPE "M" and a merge.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/test_vocab.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

// Adds the lines of text to the vocabulary; returns what comes after the first empty line.
std::string_view add_lines(std::string_view text, VocabData& data) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) return text;
    if (line.front() == 'M') {
      data.merges.emplace_back(line.substr(1));
      continue;
    }
    add_token(data, std::string(line.substr(1)), static_cast<TokenType>(line.front() - '0'),
              static_cast<float>(line.size()));
    if (line.front() == '!') data.eos = line.size() > 1 ? line[1] : -1;
  }
  return text;
}

void check_streams(const Tokenizer& tokenizer, const std::vector<TokenId>& ids,
                   const DecodeOptions& options) {
  const std::string decoded = tokenizer.decode(ids, options);
  Detokenizer stream(tokenizer, options);
  std::string streamed;
  for (const TokenId id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  RECUA_CHECK(streamed == replace_invalid_utf8(decoded));
}

void run(std::uint8_t mode, std::string_view text) {
  const bool byte_level = (mode & 0x20) != 0;
  const bool own_vocabulary = (mode & 0x80) != 0;
  VocabData data = byte_level ? byte_level_test_vocab() : sentencepiece_test_vocab();
  const auto names = known_pretokenizers();
  data.pre = names[(mode & 0x1F) % names.size()];
  if (own_vocabulary) text = add_lines(text, data);
  const auto tokenizer = Tokenizer::create(std::move(data));
  if (!tokenizer.ok()) {
    RECUA_CHECK(own_vocabulary && !tokenizer.error().message.empty());
    return;
  }

  const EncodeOptions encode{
      .add_bos = false, .parse_special = (mode & 0x40) != 0, .normalize = false};
  const std::vector<TokenId> ids = tokenizer->encode(text, encode);
  for (const TokenId id : ids) {
    RECUA_CHECK(id >= 0 && static_cast<std::size_t>(id) < tokenizer->size());
  }
  const DecodeOptions decode{.special_text = true};
  check_streams(*tokenizer, ids, decode);
  check_streams(*tokenizer, tokenizer->encode(text), {});
  if (own_vocabulary) return;  // It may stand in its own way: "<" as a control token, and so on.
  const std::string decoded = tokenizer->decode(ids, decode);
  if (byte_level) {
    RECUA_CHECK(decoded == replace_invalid_utf8(text));
  } else if (text.find("\xE2\x96\x81") == text.npos) {  // Which becomes a space.
    RECUA_CHECK(decoded == text);
  }
}

}  // namespace
}  // namespace recua::tokenizer

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  recua::tokenizer::run(data[0], text);
  return 0;
}
