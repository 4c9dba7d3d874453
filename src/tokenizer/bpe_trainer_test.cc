#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

TrainedBpe must_train(std::string_view text, const BpeTrainOptions& options) {
  auto trainer = BpeTrainer::create(options);
  EXPECT_TRUE(trainer.ok());
  EXPECT_TRUE(trainer->add(text).ok());
  auto trained = trainer->train();
  EXPECT_TRUE(trained.ok()) << trained.error().message;
  return std::move(trained).value();
}

Tokenizer must_create(const TrainedBpe& trained) {
  auto tokenizer = Tokenizer::create(trained.vocab);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(tokenizer).value();
}

// Text with few letters, so that pairs repeat, and everything that words can begin and end with.
std::string random_text(Rng& rng, std::size_t n_parts) {
  constexpr std::string_view kParts[] = {"a", "b",  "ab", "aa",  "ba",           "the", "\xC3\xA9",
                                         " ", "  ", "\n", "'s",  "12",           "7",   ",",
                                         "!", ".",  " a", " ab", "\xE2\x82\xAC", "abab"};
  std::string out;
  for (std::size_t i = 0; i < n_parts; ++i) out += kParts[rng.below(std::size(kParts))];
  return out;
}

// The same algorithm without any index: counts everything again for each merge.
std::vector<std::string> plain_merges(std::string_view text, std::size_t n_merges) {
  const auto pretokenizer = Pretokenizer::create("gpt-2");
  std::vector<std::vector<std::string>> words;
  for (const std::string_view word : pretokenizer->split(text)) {
    std::vector<std::string>& symbols = words.emplace_back();
    for (const char c : word) symbols.emplace_back(1, c);
  }
  std::map<std::string, int> ids;
  for (int byte = 0; byte < 256; ++byte) ids[std::string(1, static_cast<char>(byte))] = byte;
  std::vector<std::string> merges;
  while (merges.size() < n_merges) {
    std::map<std::pair<int, int>, std::size_t> counts;  // Places that do not overlap come later.
    std::map<std::pair<int, int>, std::pair<std::string, std::string>> texts;
    for (const auto& symbols : words) {
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (ids.contains(symbols[i] + symbols[i + 1])) continue;
        const std::pair key(ids.at(symbols[i]), ids.at(symbols[i + 1]));
        ++counts[key];
        texts[key] = {symbols[i], symbols[i + 1]};
      }
    }
    const auto best = std::ranges::max_element(
        counts, [](const auto& a, const auto& b) {  // The first of equals stays.
          return a.second < b.second;
        });
    if (best == counts.end() || best->second < 2) break;
    const auto [left, right] = texts[best->first];
    for (auto& symbols : words) {
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (symbols[i] != left || symbols[i + 1] != right) continue;
        symbols[i] += right;
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      }
    }
    const int id = static_cast<int>(ids.size());
    ids[left + right] = id;
    merges.push_back(to_byte_level(left) + " " + to_byte_level(right));
  }
  return merges;
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
  // The example of Sennrich et al. 2016, with a space in front of each word. "es" and "st" occur 9
  // times, and e is older than s; then " l", "lo" and "ow" 7 times, and the space is the oldest.
  std::string text;
  for (const auto& [word, n] : std::vector<std::pair<std::string, int>>{
           {" low", 5}, {" lower", 2}, {" newest", 6}, {" widest", 3}}) {
    for (int i = 0; i < n; ++i) text += word;
  }
  const TrainedBpe trained = must_train(text, {.vocab_size = 256 + 5 + 1});
  EXPECT_EQ(trained.vocab.merges,
            (std::vector<std::string>{"e s", "es t", to_byte_level(" ") + " l", "o w",
                                      to_byte_level(" ") + "l ow"}));
}

TEST(BpeTrainer, AgreesWithCountingAgainForEachMerge) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const std::string text = random_text(rng, 300);
    const TrainedBpe trained = must_train(text, {.vocab_size = 256 + 60 + 1});
    EXPECT_EQ(trained.vocab.merges, plain_merges(text, 60));
  }
}

TEST(BpeTrainer, NumbersBytesFirstThenMergesThenTheEndOfText) {
  const TrainedBpe trained = must_train("abab abab", {.vocab_size = 300});
  const Tokenizer tokenizer = must_create(trained);
  ASSERT_EQ(trained.vocab.tokens.size(), 256 + trained.vocab.merges.size() + 1);
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    EXPECT_EQ(tokenizer.piece(byte), std::string_view(&one, 1));
  }
  const auto end = static_cast<TokenId>(trained.vocab.tokens.size() - 1);
  EXPECT_EQ(tokenizer.piece(end), kEndOfText);
  EXPECT_EQ(tokenizer.eos(), end);
  EXPECT_TRUE(tokenizer.special(end));
  EXPECT_EQ(tokenizer.encode("").front(), end);  // Texts begin with it.
}

TEST(BpeTrainer, GivesBackAllBytesOfAText) {
  Rng rng(5);
  std::string every;
  for (char32_t point = 1; point < 0x3000; ++point) {
    if (point < 0x600 || point % 7 == 0) append_utf8(point, every);
  }
  for (const char32_t point : {0xFFFDu, 0x1F600u, 0x10FFFFu}) append_utf8(point, every);
  const Tokenizer tokenizer =
      must_create(must_train(every + random_text(rng, 500), {.vocab_size = 400}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(every)), every);
  // Single bytes are tokens too, so what a cut inside a character leaves can be written.
  std::vector<TokenId> bytes;
  std::string expected;
  for (int byte = 0; byte < 256; ++byte) {
    bytes.push_back(byte);
    expected += static_cast<char>(byte);
  }
  EXPECT_EQ(tokenizer.decode(bytes), expected);
}

// The trainer counts the tokens of its text as it left them; ByteLevelBpe must cut the text so.
TEST(BpeTrainer, EndsWithTheSegmentationThatTheTokenizerMakes) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed + 100);
    const std::string text = random_text(rng, 2000);
    const TrainedBpe trained = must_train(text, {.vocab_size = 256 + 20 * (seed + 1)});
    const Tokenizer tokenizer = must_create(trained);
    EXPECT_EQ(tokenizer.encode(text, {.add_bos = false}).size(), trained.n_tokens);
    EXPECT_LT(trained.n_tokens, text.size());
    EXPECT_EQ(trained.n_bytes, text.size());
  }
}

TEST(BpeTrainer, GivesTheSameVocabularyHoweverTheTextComes) {
  Rng rng(9);
  const std::string a = random_text(rng, 1000) + "\n";
  const std::string b = "\n" + random_text(rng, 1000);
  auto apart = BpeTrainer::create({.vocab_size = 400});
  ASSERT_TRUE(apart.ok());
  ASSERT_TRUE(apart->add(a).ok());
  ASSERT_TRUE(apart->add(b).ok());
  auto again = BpeTrainer::create({.vocab_size = 400});
  ASSERT_TRUE(again.ok());
  ASSERT_TRUE(again->add(a).ok());
  ASSERT_TRUE(again->add(b).ok());
  const auto first = apart->train();
  const auto second = again->train();
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(first->vocab.merges, second->vocab.merges);
  // Order of words decides nothing.
  const TrainedBpe turned = must_train(b + a, {.vocab_size = 400});
  const TrainedBpe straight = must_train(a + b, {.vocab_size = 400});
  EXPECT_NE(straight.n_words, 0u);
  EXPECT_EQ(turned.vocab.tokens.size(), straight.vocab.tokens.size());
}

TEST(BpeTrainer, StopsWhereNoPairIsFrequentEnough) {
  const TrainedBpe trained = must_train("abc abc xyz", {.vocab_size = 1000});
  EXPECT_LT(trained.vocab.tokens.size(), 265u);
  EXPECT_EQ(must_train("abc abc xyz", {.vocab_size = 1000, .count_min = 1}).n_words, 3u);
}

TEST(BpeTrainer, MakesEachTokenByOneMerge) {
  // " abc" begins as " ab" c, "xabc" as x "abc" or so: whatever wins, no token is there twice.
  Rng rng(3);
  const TrainedBpe trained = must_train(random_text(rng, 5000), {.vocab_size = 900});
  std::vector<std::string> tokens = trained.vocab.tokens;
  std::ranges::sort(tokens);
  EXPECT_EQ(std::ranges::adjacent_find(tokens), tokens.end());
}

// A run of one letter has about as many places as letters for each of its merges.
TEST(BpeTrainer, TakesLongWordsInItsStride) {
  std::string text(std::size_t{1} << 20, 'a');
  Rng rng(1);
  text += ' ';
  for (int i = 0; i < 1 << 20; ++i) text += static_cast<char>('a' + rng.below(4));
  const TrainedBpe trained = must_train(text, {.vocab_size = 800});
  EXPECT_EQ(must_create(trained).encode(text, {.add_bos = false}).size(), trained.n_tokens);
}

TEST(BpeTrainer, CutsALongTextOnlyWhereNoWordIsCut) {
  Rng rng(2);
  std::string text;
  while (text.size() < (std::size_t{9} << 20)) text += random_text(rng, 20) + "b\n  ab\n\n";
  auto trainer = BpeTrainer::create({.vocab_size = 280});
  ASSERT_TRUE(trainer.ok());
  ASSERT_TRUE(trainer->add(text).ok());
  const auto trained = trainer->train();
  ASSERT_TRUE(trained.ok());
  EXPECT_EQ(trained->n_words, Pretokenizer::create("gpt-2")->split(text).size());
}

TEST(BpeTrainer, NormalizesForSchemesThatDo) {
  const TrainedBpe trained =
      must_train("e\xCC\x81 e\xCC\x81 e\xCC\x81", {.vocab_size = 260, .pre = "qwen2"});
  EXPECT_EQ(trained.vocab.merges.front(), to_byte_level("\xC3") + " " + to_byte_level("\xA9"));
}

TEST(BpeTrainer, RefusesWhatItCannotTrain) {
  const auto small = BpeTrainer::create({.vocab_size = 257});
  ASSERT_FALSE(small.ok());
  EXPECT_EQ(small.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(small.error().message.find("257, must be from 258"), std::string::npos);
  EXPECT_FALSE(BpeTrainer::create({.vocab_size = kBpeVocabMax + 1}).ok());
  EXPECT_FALSE(BpeTrainer::create({.count_min = 0}).ok());
  const auto unknown = BpeTrainer::create({.pre = "none-such"});
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
  auto trainer = BpeTrainer::create({});
  ASSERT_TRUE(trainer.ok());
  EXPECT_FALSE(trainer->train().ok());
  ASSERT_TRUE(trainer->add("a b").ok());
  const auto trained = trainer->train();
  ASSERT_FALSE(trained.ok());
  EXPECT_NE(trained.error().message.find("too short"), std::string::npos);
}

}  // namespace
}  // namespace recua::tokenizer
