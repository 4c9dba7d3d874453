#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/test_vocab.h"
#include "tokenizer/vocabulary.h"

namespace recua::tokenizer {
namespace {

using Ids = std::vector<TokenId>;

Tokenizer make(VocabData data) {
  auto tokenizer = Tokenizer::create(std::move(data));
  if (!tokenizer.ok()) ADD_FAILURE() << tokenizer.error().message;
  return std::move(tokenizer).value();
}

std::string error_of(VocabData data) {
  auto tokenizer = Tokenizer::create(std::move(data));
  return tokenizer.ok() ? "no error" : tokenizer.error().message;
}

// Any bytes, with what matters to these vocabularies more often than by chance.
std::string random_bytes(Rng& rng, std::size_t n_max) {
  const std::string parts[] = {"a",        "aa",      "b",       " ",
                               "\xC3\xA9", "<think>", "<|end|>", "\xF0\x9F\x98\x80"};
  std::string out;
  while (out.size() < n_max) {
    if (rng.below(8) == 0) break;
    if (rng.below(3) == 0) {
      out += static_cast<char>(rng.below(256));
    } else {
      out += parts[rng.below(std::size(parts))];
    }
  }
  return out;
}

TEST(SentencePiece, MergesTheHighestScoreFirst) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  // 259 aa, 260 ab, 261 aaaa, 262 _a, 263 _, 264 a, 265 b. "aa" (-1) is made before "_a" (-4).
  EXPECT_EQ(tokenizer.encode("aa"), (Ids{1, 263, 259}));
  EXPECT_EQ(tokenizer.encode("a"), (Ids{1, 262}));
  EXPECT_EQ(tokenizer.encode("ab", {.add_bos = false}), (Ids{263, 260}));
  EXPECT_EQ(tokenizer.encode("aaa", {.add_bos = false}), (Ids{263, 259, 264}));
  EXPECT_EQ(tokenizer.encode(""), (Ids{1}));
}

TEST(SentencePiece, FallsBackToBytes) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  EXPECT_EQ(tokenizer.encode("\n\xE4\xBD\xA0\xFF", {.add_bos = false}),
            (Ids{263, 3 + 0x0A, 3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xFF}));
}

TEST(SentencePiece, TakesTheSpaceMarkForASpace) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  EXPECT_EQ(tokenizer.encode("b\xE2\x96\x81"
                             "b"),
            tokenizer.encode("b b"));
}

// Cut wherever it may be, against a text that is never cut.
TEST(SentencePiece, GivesTheSameIdsForALongTextInParts) {
  const VocabData data = sentencepiece_test_vocab();
  const Vocabulary vocabulary = Vocabulary::create(data).value();
  const SentencePiece whole(vocabulary, std::size_t{1} << 20);
  const char* const parts[] = {"a",        "b",    "c",        " ", "\xE2\x96\x81",
                               "\xC3\xA9", "\xC3", "\x96\x81", "e", "\xE2"};
  Rng rng(5);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (std::size_t n = rng.below(60); n > 0; --n) text += parts[rng.below(std::size(parts))];
    for (const bool space_first : {false, true}) {
      Ids expected;
      whole.encode(text, space_first, expected);
      for (const std::size_t part_bytes : {1U, 7U}) {
        Ids found;
        SentencePiece(vocabulary, part_bytes).encode(text, space_first, found);
        ASSERT_EQ(found, expected) << i << ' ' << part_bytes;
      }
    }
  }
}

TEST(SentencePiece, UsesTheUnknownTokenWithoutByteTokens) {
  VocabData data;
  data.model = "llama";
  add_token(data, "<unk>", TokenType::kUnknown);
  add_token(data, "a", TokenType::kNormal);
  data.unk = 0;
  data.add_space_prefix = false;
  const Tokenizer tokenizer = make(std::move(data));
  EXPECT_EQ(tokenizer.encode("a\xC3\xA9z"), (Ids{1, 0, 0}));
}

TEST(ByteLevelBpe, MergesInTheOrderOfTheList) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  // 256 aa, 257 ab, 258 " a", 259 aaaa, 260 abab, 261 e acute.
  EXPECT_EQ(tokenizer.encode("aab"), (Ids{256, 'b'}));
  EXPECT_EQ(tokenizer.encode("abab ab"), (Ids{260, ' ', 257}));
  EXPECT_EQ(tokenizer.encode("aaaaa"), (Ids{259, 'a'}));
  EXPECT_EQ(tokenizer.encode("\xC3\xA9 a"), (Ids{261, 258}));
}

TEST(ByteLevelBpe, SeesTheReplacementCharacterForInvalidParts) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  EXPECT_EQ(tokenizer.encode("\xE2\x82"
                             "a\xFF"),
            (Ids{0xEF, 0xBF, 0xBD, 'a', 0xEF, 0xBF, 0xBD}));
}

TEST(ByteLevelBpe, SplitsWhatOnlyMergesKnowIntoBytes) {
  VocabData data = byte_level_test_vocab();
  data.merges = {"c d", "cd e"};  // Neither result is a token.
  EXPECT_EQ(make(std::move(data)).encode("cde"), (Ids{'c', 'd', 'e'}));
}

TEST(ByteLevelBpe, TakesWholeWordsFirstWhereTheModelDoes) {
  VocabData data = byte_level_test_vocab();
  add_token(data, "bab", TokenType::kNormal);  // No merge makes it.
  const auto bab = static_cast<TokenId>(data.tokens.size()) - 1;
  EXPECT_EQ(make(data).encode("bab"), (Ids{'b', 257}));
  data.pre = "llama-bpe";
  EXPECT_EQ(make(data).encode("bab"), (Ids{bab}));
}

TEST(ByteLevelBpe, NormalizesForModelsTrainedOnNfc) {
  VocabData data = byte_level_test_vocab();
  data.pre = "qwen2";
  const Tokenizer tokenizer = make(std::move(data));
  EXPECT_EQ(tokenizer.encode("e\xCC\x81"), (Ids{261}));
  EXPECT_EQ(tokenizer.encode("e\xCC\x81", {.normalize = false}), (Ids{'e', 0xCC, 0x81}));
}

TEST(SpecialTokens, AreFoundLongestFirstOnlyWhenAsked) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  const TokenId end = *tokenizer.piece_to_id("<|end|>");
  const TokenId end_x = *tokenizer.piece_to_id("<|end|>x");
  EXPECT_EQ(tokenizer.encode("b<|end|>xa<|end|><|end|"),
            (Ids{'b', end_x, 'a', end, '<', '|', 'e', 'n', 'd', '|'}));
  EXPECT_EQ(tokenizer.encode("<|end|>", {.parse_special = false}),
            (Ids{'<', '|', 'e', 'n', 'd', '|', '>'}));
}

TEST(SpecialTokens, AreFoundEitherWayIfUserDefined) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  const TokenId think = *tokenizer.piece_to_id("<think>");
  EXPECT_EQ(tokenizer.encode("a<think>", {.parse_special = false}), (Ids{'a', think}));
}

// Phi 3's file says that </s> is user-defined; text that spells it must not end an answer.
TEST(SpecialTokens, AreControlTokensIfTheyEndAnAnswer) {
  VocabData data = byte_level_test_vocab();
  add_token(data, "</s>", TokenType::kUserDefined);
  const auto id = static_cast<TokenId>(data.tokens.size()) - 1;
  const Tokenizer tokenizer = make(std::move(data));
  EXPECT_TRUE(tokenizer.special(id));
  EXPECT_TRUE(tokenizer.is_end_of_generation(id));
  EXPECT_EQ(tokenizer.encode("</s>"), (Ids{id}));
  EXPECT_EQ(tokenizer.encode("</s>", {.parse_special = false}), (Ids{'<', '/', 's', '>'}));
}

TEST(SpecialTokens, KnowWhatEndsAnAnswer) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  EXPECT_TRUE(tokenizer.is_end_of_generation(*tokenizer.piece_to_id("<|end|>")));
  EXPECT_TRUE(tokenizer.is_end_of_generation(*tokenizer.eos()));
  EXPECT_FALSE(tokenizer.is_end_of_generation(*tokenizer.piece_to_id("<think>")));
  EXPECT_FALSE(tokenizer.is_end_of_generation(-1));
  EXPECT_TRUE(tokenizer.special(*tokenizer.eos()));
  EXPECT_FALSE(tokenizer.special('a'));
  EXPECT_FALSE(tokenizer.bos().has_value());
}

TEST(Tokenizer, PutsAroundATextWhatTheVocabularyAsksFor) {
  VocabData data = sentencepiece_test_vocab();
  data.add_eos = true;
  EXPECT_EQ(make(data).encode("b"), (Ids{1, 263, 265, 2}));
  EXPECT_EQ(make(data).encode("b", {.add_bos = false}), (Ids{263, 265}));
  data.add_bos = false;
  data.add_space_prefix = false;
  EXPECT_EQ(make(data).encode("b"), (Ids{265, 2}));
}

TEST(Tokenizer, PutsNoSpaceBetweenATextAndWhatGoesOnAfterIt) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  EXPECT_EQ(tokenizer.encode("b", {.add_bos = false, .from_start = false}), (Ids{265}));
  // Behind a special token a text begins again.
  EXPECT_EQ(tokenizer.encode("b</s>b", {.add_bos = false, .from_start = false}),
            (Ids{265, 2, 263, 265}));
}

TEST(Tokenizer, GivesNothingForIdsThatAreNotThere) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  constexpr auto kMin = std::numeric_limits<TokenId>::min();
  constexpr auto kMax = std::numeric_limits<TokenId>::max();
  for (const TokenId id : {kMin, -1, static_cast<TokenId>(tokenizer.size()), kMax}) {
    EXPECT_EQ(tokenizer.piece(id), "");
    EXPECT_EQ(tokenizer.decode(Ids{id}), "");
    EXPECT_FALSE(tokenizer.special(id));
    EXPECT_EQ(tokenizer.type(id), TokenType::kUnused);
  }
}

TEST(Tokenizer, DecodesSpecialTokensAsTextOrNotAtAll) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  const Ids ids = {1, 263, 265, 2, 262};
  EXPECT_EQ(tokenizer.decode(ids), "ba");
  EXPECT_EQ(tokenizer.decode(ids, {.special_text = true}), "<s>b</s>a");
  EXPECT_EQ(tokenizer.decode(Ids{262}, {.from_start = false}), " a");
  EXPECT_EQ(tokenizer.piece(1, false), "");
  EXPECT_EQ(tokenizer.piece(1), "<s>");
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  const Tokenizer sentence_piece = make(sentencepiece_test_vocab());
  const Tokenizer byte_level = make(byte_level_test_vocab());
  Rng rng(11);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = random_bytes(rng, 40);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << testing::PrintToString(text));
    for (const bool parse : {false, true}) {
      const EncodeOptions encode{.parse_special = parse};
      const DecodeOptions decode{.special_text = true};
      const Ids ids = sentence_piece.encode(text, {.add_bos = false, .parse_special = parse});
      if (text.find("\xE2\x96\x81") == std::string::npos) {
        EXPECT_EQ(sentence_piece.decode(ids, decode), text);
      }
      Utf8Stream valid;
      std::string expected = valid.push(text);
      expected += valid.flush();
      EXPECT_EQ(byte_level.decode(byte_level.encode(text, encode), decode), expected);
    }
  }
}

// Quadratic merging, or backtracking, would take minutes here.
TEST(Tokenizer, TakesLongWordsInItsStride) {
  const Tokenizer sentence_piece = make(sentencepiece_test_vocab());
  VocabData data = byte_level_test_vocab();
  data.pre = "qwen2";
  const Tokenizer byte_level = make(std::move(data));
  constexpr std::size_t kSize = 1 << 20;
  std::string marks = "e";  // Combining marks in the wrong order: NFC has to sort them.
  while (marks.size() < kSize) marks += "\xCC\x81\xCC\xA3";
  std::string specials;  // Always about to become <|endoftext|>.
  while (specials.size() < kSize) specials += "<|endoftex";
  for (const std::string& text :
       {std::string(kSize, 'a'), std::string(kSize, ' '), std::string(kSize, '\n'),
        std::string(kSize, '\xE2'), std::string(kSize, '<'), marks, specials}) {
    EXPECT_GE(sentence_piece.encode(text).size(), kSize / 8);
    EXPECT_GE(byte_level.encode(text).size(), kSize / 8);
  }
}

TEST(Detokenizer, GivesTheSameTextHoweverTheIdsAreCut) {
  const Tokenizer tokenizer = make(sentencepiece_test_vocab());
  Rng rng(5);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    Ids ids;
    while (rng.below(20) != 0) ids.push_back(static_cast<TokenId>(rng.below(tokenizer.size() + 2)));
    Utf8Stream whole;
    std::string expected = whole.push(tokenizer.decode(ids));
    expected += whole.flush();
    Detokenizer stream(tokenizer);
    std::string text;
    for (std::span<const TokenId> rest = ids; !rest.empty();) {
      const std::size_t n = std::min<std::size_t>(rest.size(), 1 + rng.below(3));
      const std::string piece = stream.push(rest.first(n));
      Utf8Stream check;  // A piece is whole characters: nothing is replaced or held back.
      EXPECT_EQ(check.push(piece), piece);
      text += piece;
      rest = rest.subspan(n);
    }
    text += stream.flush();
    EXPECT_EQ(text, expected);
    EXPECT_EQ(stream.flush(), "");
  }
}

TEST(Detokenizer, HoldsBackWhatMayBecomeACharacter) {
  const Tokenizer tokenizer = make(byte_level_test_vocab());
  Detokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push('a'),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.push('b'), "b");
}

TEST(BadVocabulary, IsRefusedWithTheKeyAndWhatWouldBeRight) {
  const VocabData good = sentencepiece_test_vocab();
  const std::string n = std::to_string(good.tokens.size());
  VocabData data = good;
  data.scores.pop_back();
  EXPECT_EQ(error_of(data), "tokenizer.ggml.scores has " + std::to_string(good.tokens.size() - 1) +
                                " entries and tokenizer.ggml.tokens has " + n + "; must be equal");
  data = good;
  data.types.push_back(1);
  EXPECT_NE(error_of(data).find("tokenizer.ggml.token_type has"), std::string::npos);
  data = good;
  data.types[7] = 9;
  EXPECT_EQ(error_of(data), "tokenizer.ggml.token_type[7] is 9; must be 1 to 6");
  data = good;
  data.scores[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(error_of(data), "tokenizer.ggml.scores[3] is not a number");
  data = good;
  data.eos = static_cast<std::int32_t>(good.tokens.size());
  EXPECT_NE(error_of(data).find("tokenizer.ggml.eos_token_id is " + n), std::string::npos);
  data = good;
  data.pad = -2;
  EXPECT_NE(error_of(data).find("padding_token_id is 4294967294"), std::string::npos);
  data = good;
  data.tokens[5] = "<0xZZ>";
  EXPECT_NE(error_of(data).find("tokenizer.ggml.tokens[5] is \"<0xZZ>\""), std::string::npos);
  data = good;
  data.model = "bert\x1B[2J";
  EXPECT_NE(error_of(data).find("\"bert\\x1b[2J\"; recua knows \"llama\""), std::string::npos)
      << error_of(data);
  data = good;
  data.tokens.clear();
  EXPECT_NE(error_of(data).find("tokenizer.ggml.tokens is missing or empty"), std::string::npos);
  data = good;
  data.types[3 + 0x41] = 5;
  data.unk.reset();
  EXPECT_NE(error_of(data).find("no token for the byte 41"), std::string::npos);
}

TEST(BadVocabulary, NeedsMergesAndAKnownWayToSplitForByteLevelBpe) {
  const VocabData good = byte_level_test_vocab();
  VocabData data = good;
  data.merges.clear();
  EXPECT_NE(error_of(data).find("tokenizer.ggml.merges is missing"), std::string::npos);
  for (const char* merge : {"", "a", "a ", " a", " "}) {
    data = good;
    data.merges[2] = merge;
    EXPECT_NE(error_of(data).find("tokenizer.ggml.merges[2] is"), std::string::npos) << merge;
  }
  data = good;
  data.pre = "martian";
  EXPECT_NE(error_of(data).find("tokenizer.ggml.pre is \"martian\""), std::string::npos);
  EXPECT_NE(error_of(data).find("gpt-2, "), std::string::npos);
  EXPECT_NE(error_of(data).find("qwen2"), std::string::npos);
}

TEST(BadVocabulary, TakesAllBitsSetForNoToken) {
  VocabData data = sentencepiece_test_vocab();
  data.sep = -1;
  data.pad = -1;
  data.eos = -1;
  const Tokenizer tokenizer = make(std::move(data));
  EXPECT_FALSE(tokenizer.eos().has_value());
}

TEST(Vocabulary, KnowsItsSpecialTokensWithoutTypes) {
  VocabData data = sentencepiece_test_vocab();
  data.types.clear();
  const Tokenizer tokenizer = make(std::move(data));
  EXPECT_TRUE(tokenizer.special(1));
  EXPECT_EQ(tokenizer.type(3), TokenType::kByte);
  EXPECT_EQ(tokenizer.encode("<s>a"), (Ids{1, 1, 262}));
}

}  // namespace
}  // namespace recua::tokenizer
