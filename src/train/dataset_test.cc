#include "train/dataset.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/scratch_folder.h"
#include "tokenizer/test_vocab.h"

namespace recua::train {
namespace {

using tokenizer::Tokenizer;
using Tokens = std::vector<std::int32_t>;
using Counts = std::vector<std::uint8_t>;

Tokenizer byte_level() {
  auto created = Tokenizer::create(tokenizer::byte_level_test_vocab());
  EXPECT_TRUE(created.ok());
  return std::move(created).value();
}

Tokenizer sentencepiece() {
  auto created = Tokenizer::create(tokenizer::sentencepiece_test_vocab());
  EXPECT_TRUE(created.ok());
  return std::move(created).value();
}

class DatasetTest : public ::testing::Test {
 protected:
  Result<Dataset> open(std::string_view name, std::string_view text, const Tokenizer& tokenizer,
                       const DatasetOptions& options) {
    const std::filesystem::path path = folder_ / std::string(name);
    std::ofstream(path, std::ios::binary) << text;
    return Dataset::open(path, tokenizer, options);
  }
  Dataset must_open(std::string_view name, std::string_view text, const Tokenizer& tokenizer,
                    const DatasetOptions& options) {
    auto opened = open(name, text, tokenizer, options);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return std::move(opened).value();
  }
  void expect_error(std::string_view name, std::string_view text, ErrorCode code,
                    std::string_view says) {
    const auto opened = open(name, text, byte_level(), {.n_ctx = 8});
    ASSERT_FALSE(opened.ok()) << text;
    EXPECT_EQ(opened.error().code, code) << opened.error().message;
    EXPECT_NE(opened.error().message.find(says), std::string::npos) << opened.error().message;
    EXPECT_NE(opened.error().message.find(name), std::string::npos) << opened.error().message;
  }

  ScratchFolder folder_;
};

TEST_F(DatasetTest, PredictsEachTokenOfATextOnceInWindowsThatShareOne) {
  const Dataset data =
      must_open("a.txt", "cdefghijk", byte_level(), {.n_ctx = 4, .validation_share = 0.0});
  ASSERT_EQ(data.n_examples(), 2u);
  EXPECT_EQ(data.n_validation(), 0u);
  EXPECT_EQ(data.example(0).tokens, (Tokens{'c', 'd', 'e', 'f', 'g'}));
  EXPECT_EQ(data.example(0).counts, (Counts{1, 1, 1, 1}));
  EXPECT_EQ(data.example(1).tokens, (Tokens{'g', 'h', 'i', 'j', 'k'}));
  EXPECT_EQ(data.n_targets_train(), 8u);
  EXPECT_EQ(data.n_inputs(1), 4u);
}

TEST_F(DatasetTest, EndsWithAShorterWindowButNotWithOneThatPredictsNothing) {
  for (std::size_t n = 2; n < 40; ++n) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i) text += static_cast<char>('c' + i % 20);
    const Dataset data =
        must_open("a.txt", text, byte_level(), {.n_ctx = 7, .validation_share = 0.0});
    Tokens predicted;
    for (std::size_t i = 0; i < data.n_examples(); ++i) {
      const Example example = data.example(i);
      ASSERT_GE(example.tokens.size(), 2u);
      ASSERT_LE(example.tokens.size(), 8u);
      ASSERT_EQ(example.counts.size(), example.tokens.size() - 1);
      predicted.insert(predicted.end(), example.tokens.begin() + 1, example.tokens.end());
    }
    EXPECT_EQ(predicted, Tokens(text.begin() + 1, text.end())) << n;
  }
}

TEST_F(DatasetTest, PutsBosInFrontOfEachWindowWhereTheVocabularyDoes) {
  const Tokenizer tokenizer = sentencepiece();
  const Dataset data =
      must_open("a.txt", "cbcbcb", tokenizer, {.n_ctx = 4, .validation_share = 0.0});
  Tokens expected = tokenizer.encode("cbcbcb", {.add_bos = false});
  Tokens predicted;
  for (std::size_t i = 0; i < data.n_examples(); ++i) {
    const Example example = data.example(i);
    EXPECT_EQ(example.tokens.front(), tokenizer.bos());
    EXPECT_EQ(example.counts, Counts(example.tokens.size() - 1, 1));
    predicted.insert(predicted.end(), example.tokens.begin() + 1, example.tokens.end());
  }
  EXPECT_GT(data.n_examples(), 1u);
  EXPECT_EQ(predicted, expected);
}

TEST_F(DatasetTest, LearnsOnlyTheReplyOfALineAndItsEnd) {
  const Tokenizer tokenizer = byte_level();
  const Dataset data = must_open("a.jsonl",
                                 "{\"prompt\": \"cde\", \"reply\": \"fg\", \"id\": 7}\r\n\n"
                                 "{\"reply\": \"h\", \"prompt\": \"\"}",
                                 tokenizer, {.n_ctx = 8, .validation_share = 0.0});
  ASSERT_EQ(data.n_examples(), 2u);
  EXPECT_EQ(data.example(0).tokens, (Tokens{'c', 'd', 'e', 'f', 'g', *tokenizer.eos()}));
  EXPECT_EQ(data.example(0).counts, (Counts{0, 0, 1, 1, 1}));
  EXPECT_EQ(data.example(1).tokens, (Tokens{'h', *tokenizer.eos()}));
  EXPECT_EQ(data.example(1).counts, (Counts{1}));
  EXPECT_EQ(data.n_targets_train(), 4u);
}

TEST_F(DatasetTest, TokenizesTheReplyAsTheModelWouldWriteIt) {
  const Tokenizer tokenizer = sentencepiece();
  const Dataset data = must_open("a.jsonl", R"({"prompt": "c", "reply": "cb"})", tokenizer,
                                 {.n_ctx = 8, .validation_share = 0.0});
  const Example example = data.example(0);
  EXPECT_EQ(example.tokens.front(), tokenizer.bos());
  EXPECT_EQ(tokenizer.decode(example.tokens), "ccb");  // Not "c cb".
  const auto learned = std::accumulate(example.counts.begin(), example.counts.end(), 0);
  EXPECT_EQ(learned, 3);  // c, b, end of text.
}

TEST_F(DatasetTest, TakesTextThatSpellsAControlTokenForText) {
  const Dataset data =
      must_open("a.txt", "<|end|>", byte_level(), {.n_ctx = 16, .validation_share = 0.0});
  EXPECT_EQ(data.example(0).tokens, (Tokens{'<', '|', 'e', 'n', 'd', '|', '>'}));
}

TEST_F(DatasetTest, KeepsTheLastShareForValidation) {
  const std::string text(401, 'c');
  const auto parts = [&](double share) {
    const Dataset data =
        must_open("a.txt", text, byte_level(), {.n_ctx = 4, .validation_share = share});
    return std::pair(data.n_train(), data.n_validation());
  };
  EXPECT_EQ(parts(0.05), std::pair(95uL, 5uL));
  EXPECT_EQ(parts(0.0), std::pair(100uL, 0uL));
  EXPECT_EQ(parts(0.0001), std::pair(99uL, 1uL));
  EXPECT_EQ(parts(0.9999), std::pair(1uL, 99uL));
  const Dataset one = must_open("b.txt", "cd", byte_level(), {.n_ctx = 4});
  EXPECT_EQ(one.n_train(), 1u);
  EXPECT_EQ(one.n_validation(), 0u);
}

TEST_F(DatasetTest, TellsOtherDataByItsFingerprint) {
  const auto fingerprint = [&](std::string_view text, std::size_t n_ctx) {
    return must_open("a.txt", text, byte_level(), {.n_ctx = n_ctx}).fingerprint();
  };
  EXPECT_EQ(fingerprint("cdefgh", 3), fingerprint("cdefgh", 3));
  EXPECT_NE(fingerprint("cdefgh", 3), fingerprint("cdefgi", 3));
  EXPECT_NE(fingerprint("cdefgh", 3), fingerprint("cdefgh", 2));
}

TEST_F(DatasetTest, SkipsAByteOrderMark) {
  const Dataset data = must_open("a.txt",
                                 "\xEF\xBB\xBF"
                                 "cd",
                                 byte_level(), {.n_ctx = 4});
  EXPECT_EQ(data.example(0).tokens, (Tokens{'c', 'd'}));
}

TEST_F(DatasetTest, RefusesTextThatIsNone) {
  expect_error("a.txt", "", ErrorCode::kCorrupt, "no text");
  expect_error("a.txt", " \n\t\r\n", ErrorCode::kCorrupt, "no text");
  expect_error("a.jsonl", "\xEF\xBB\xBF\n \n", ErrorCode::kCorrupt, "no text");
  expect_error("a.txt", "c", ErrorCode::kCorrupt, "single token");
  expect_error("a.txt", std::string_view("cde\0fg", 6), ErrorCode::kCorrupt, "byte 3 is zero");
  expect_error("a.txt", "cd\nef\xC3(gh", ErrorCode::kCorrupt, "line 2: byte 5");
  expect_error("a.txt", "cd\xE2\x82", ErrorCode::kCorrupt, "line 1: byte 2");
  const auto missing = Dataset::open(folder_ / "none.txt", byte_level(), {});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

TEST_F(DatasetTest, NamesTheLineThatIsWrong) {
  const std::string good = "{\"prompt\": \"c\", \"reply\": \"d\"}\n";
  expect_error("a.jsonl", good + "\n{\"prompt\": \"c\"", ErrorCode::kCorrupt, "line 3: not JSON");
  expect_error("a.jsonl", good + "[1]", ErrorCode::kCorrupt, "line 2: not a JSON object");
  expect_error("a.jsonl", good + "{\"prompt\": \"c\"}", ErrorCode::kCorrupt,
               "line 2: \"reply\" is missing");
  expect_error("a.jsonl", good + "{\"reply\": \"c\"}", ErrorCode::kCorrupt,
               "line 2: \"prompt\" is missing");
  expect_error("a.jsonl", good + "{\"prompt\": 1, \"reply\": \"c\"}", ErrorCode::kCorrupt,
               "line 2: \"prompt\" is not a text");
  expect_error("a.jsonl", good + "{\"prompt\": \"c\", \"reply\": \"\"}", ErrorCode::kCorrupt,
               "line 2: \"reply\" is empty");
  expect_error("a.jsonl", good + "{\"prompt\": \"cdefg\", \"reply\": \"hijk\"}",
               ErrorCode::kResourceExhausted,
               "line 2: 10 tokens (prompt 5, reply 5), need at most 9");
}

TEST_F(DatasetTest, RefusesLinesWithoutAnEndOfTextToken) {
  tokenizer::VocabData vocab = tokenizer::byte_level_test_vocab();
  vocab.eos.reset();
  const auto tokenizer = Tokenizer::create(vocab);
  ASSERT_TRUE(tokenizer.ok());
  const auto opened = open("a.jsonl", "{\"prompt\": \"c\", \"reply\": \"d\"}", *tokenizer, {});
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kUnsupported);
}

TEST_F(DatasetTest, RefusesOptionsOutOfRange) {
  for (const DatasetOptions& options :
       {DatasetOptions{.n_ctx = 0}, DatasetOptions{.validation_share = 1.0},
        DatasetOptions{.validation_share = -0.1}}) {
    const auto opened = open("a.txt", "cdef", byte_level(), options);
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Shuffle, VisitsEachExampleOncePerEpoch) {
  for (const std::size_t n : {1u, 2u, 3u, 4u, 5u, 15u, 16u, 17u, 64u, 65u, 1000u}) {
    const Shuffle shuffle(7, n);
    for (std::uint64_t epoch = 0; epoch < 20; ++epoch) {
      std::vector<int> visits(n, 0);
      for (std::uint64_t i = 0; i < n; ++i) ++visits.at(shuffle.at(epoch * n + i));
      EXPECT_EQ(std::ranges::count(visits, 1), static_cast<std::ptrdiff_t>(n))
          << "n " << n << " epoch " << epoch;
    }
  }
}

TEST(Shuffle, GivesTheSameOrderOnEveryMachine) {
  // Numbers of the first run: a resumed run on another machine must see them again.
  const Shuffle shuffle(42, 10);
  std::vector<std::size_t> order;
  for (std::uint64_t i = 0; i < 20; ++i) order.push_back(shuffle.at(i));
  EXPECT_EQ(order,
            (std::vector<std::size_t>{5, 3, 2, 0, 9, 7, 6, 4, 1, 8, 7, 8, 5, 4, 1, 6, 2, 0, 9, 3}));
}

TEST(Shuffle, OrdersDifferBetweenEpochsAndSeeds) {
  const auto order = [](std::uint64_t seed, std::uint64_t epoch) {
    std::vector<std::size_t> out;
    const Shuffle shuffle(seed, 100);
    for (std::uint64_t i = 0; i < 100; ++i) out.push_back(shuffle.at(epoch * 100 + i));
    return out;
  };
  EXPECT_NE(order(1, 0), order(1, 1));
  EXPECT_NE(order(1, 0), order(2, 0));
  EXPECT_NE(order(1, 1), order(2, 0));
}

// Each example must be as likely in each place. With n examples over many epochs the counts of
// (place, example) are close to chi-square with (n - 1)^2 degrees of freedom: mean (n - 1)^2,
// deviation sqrt(2) (n - 1). Five deviations and a fixed seed: a fair shuffle stays within.
TEST(Shuffle, IsFair) {
  for (const std::size_t n : {2u, 3u, 5u, 10u, 17u, 33u}) {
    constexpr std::uint64_t kEpochs = 20000;
    const Shuffle shuffle(3, n);
    std::vector<double> seen(n * n, 0.0);
    std::vector<double> pairs(n * n, 0.0);  // Which example follows which.
    for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
      for (std::uint64_t i = 0; i < n; ++i) {
        const std::size_t here = shuffle.at(epoch * n + i);
        ++seen[i * n + here];
        if (i + 1 < n) ++pairs[here * n + shuffle.at(epoch * n + i + 1)];
      }
    }
    const double degrees = static_cast<double>((n - 1) * (n - 1));
    const double expected = static_cast<double>(kEpochs) / static_cast<double>(n);
    double chi_square = 0.0;
    for (const double count : seen)
      chi_square += (count - expected) * (count - expected) / expected;
    EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2 * degrees)) << n;
    // A pair (a, b) of different examples follows each other in (n - 1) of n (n - 1) cases.
    double chi_square_pairs = 0.0;
    for (std::size_t a = 0; a < n; ++a) {
      for (std::size_t b = 0; b < n; ++b) {
        if (a == b) continue;
        const double off = pairs[a * n + b] - expected;
        chi_square_pairs += off * off / expected;
      }
    }
    const double degrees_pairs = static_cast<double>(n * (n - 1));
    EXPECT_LT(chi_square_pairs, degrees_pairs + 5 * std::sqrt(2 * degrees_pairs)) << n;
  }
}

}  // namespace
}  // namespace recua::train
