#include <string>

#include <gtest/gtest.h>

#include "base/random.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/nfc.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

using Words = std::vector<std::string_view>;

Pretokenizer pretokenizer(std::string_view name) {
  auto made = Pretokenizer::create(name);
  if (!made.ok()) ADD_FAILURE() << made.error().message;
  return std::move(made).value();
}

TEST(Utf8, WritesAndReadsEveryCodePoint) {
  for (char32_t point = 0; point <= 0x10FFFF; ++point) {
    std::string text;
    append_utf8(point, text);
    const Utf8Step step = utf8_step(text);
    const bool surrogate = point >= 0xD800 && point < 0xE000;
    ASSERT_EQ(step.valid, !surrogate) << static_cast<std::uint32_t>(point);
    if (surrogate) continue;
    ASSERT_EQ(step.code_point, point);
    ASSERT_EQ(step.n_bytes, text.size());
    for (std::size_t n = 1; n < text.size(); ++n) {
      const Utf8Step cut = utf8_step(std::string_view(text).substr(0, n));
      ASSERT_TRUE(!cut.valid && cut.incomplete && cut.n_bytes == n);
    }
  }
}

TEST(Utf8, ReplacesMaximalInvalidParts) {  // The Unicode Standard 15.0, tables 3-8 to 3-11.
  const std::string r(kReplacement);
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_invalid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(replace_invalid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(to_nfc("plain"), "plain");
  EXPECT_EQ(to_nfc("cafe\xCC\x81"), "caf\xC3\xA9");
  EXPECT_EQ(to_nfc("\xE2\x84\xAB"), "\xC3\x85");                              // Angstrom sign
  EXPECT_EQ(to_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");  // Hangul
  // Dot below (220) comes before circumflex (230), whatever the order was.
  EXPECT_EQ(to_nfc("e\xCC\x82\xCC\xA3"), "\xE1\xBB\x87");
  EXPECT_EQ(to_nfc("e\xCC\xA3\xCC\x82"), "\xE1\xBB\x87");
  EXPECT_EQ(to_nfc(std::string("\0a", 2)), std::string("\0a", 2));
}

TEST(Nfc, IsIdempotent) {
  Rng rng(3);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (int k = 0; k < 12; ++k) {
      char32_t point = static_cast<char32_t>(rng.below(rng.below(2) == 0 ? 0x500 : 0x110000));
      if (point >= 0xD800 && point < 0xE000) point = 0x301;
      append_utf8(point, text);
    }
    const std::string once = to_nfc(text);
    EXPECT_EQ(to_nfc(once), once);
  }
}

TEST(ByteLevel, IsTheInverseOfItself) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(from_byte_level(to_byte_level(all)), all);
  EXPECT_EQ(to_byte_level(" a\n"),
            "\xC4\xA0"
            "a\xC4\x8A");
  EXPECT_EQ(from_byte_level("\xE4\xBD\xA0"), "\xE4\xBD\xA0");
}

TEST(Pretokenizer, SplitsAsTheModelsFilesSay) {
  EXPECT_EQ(pretokenizer("gpt-2").split("I'm  12345 \n ok"),
            (Words{"I", "'m", " ", " 12345", " \n", " ok"}));
  EXPECT_EQ(pretokenizer("llama-bpe").split("I'M 12345\n\n ok"),
            (Words{"I", "'M", " ", "123", "45", "\n\n", " ok"}));
  EXPECT_EQ(pretokenizer("qwen2").split("a 12 (b"), (Words{"a", " ", "1", "2", " (", "b"}));
  EXPECT_EQ(pretokenizer("starcoder").split("x 42"), (Words{"x", " ", "4", "2"}));
  EXPECT_EQ(pretokenizer("gpt-4o").split("camelCase's"), (Words{"camel", "Case's"}));
}

TEST(Pretokenizer, KnowsUnicodeSpaces) {
  // U+3000 is a space; U+180E was one before Unicode 6.3 and is not any more.
  EXPECT_EQ(pretokenizer("gpt-2").split("a\xE3\x80\x80\xE3\x80\x80"
                                        "b"),
            (Words{"a", "\xE3\x80\x80", "\xE3\x80\x80", "b"}));
  EXPECT_EQ(pretokenizer("gpt-2").split("a \xE1\xA0\x8E"), (Words{"a", " \xE1\xA0\x8E"}));
}

TEST(Pretokenizer, LosesNothingWhateverTheScheme) {
  Rng rng(17);
  for (const std::string_view name : known_pretokenizers()) {
    const Pretokenizer made = pretokenizer(name);
    for (int i = 0; i < 200; ++i) {
      std::string text;
      for (int k = 0; k < 20; ++k) {
        append_utf8(static_cast<char32_t>(rng.below(rng.below(2) == 0 ? 0x80 : 0xD800)), text);
      }
      std::string joined;
      for (const std::string_view word : made.split(text)) {
        EXPECT_FALSE(word.empty());
        joined += word;
      }
      EXPECT_EQ(joined, text) << name;
    }
  }
}

}  // namespace
}  // namespace recua::tokenizer
