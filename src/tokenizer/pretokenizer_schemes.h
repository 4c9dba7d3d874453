#pragma once
/// The table of pre-tokenizers: names, expressions, traits. No code.
///
/// Expressions are written as the models' own files write them, with \s for Unicode White_Space
/// (pretokenizer.cc expands it, since engines differ in what they take for a space) and without a
/// final `|\s+` or the like where what is left over would be a word anyway.

#include <array>
#include <string_view>

#include "tokenizer/pretokenizer.h"

namespace recua::tokenizer {

struct Scheme {
  static constexpr std::size_t kExpressionsMax = 4;

  std::string_view name;
  PretokenizerTraits traits;
  std::array<std::string_view, kExpressionsMax> expressions;  // Empty ones are not there.
};

inline constexpr std::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
inline constexpr std::string_view kLlama3Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Words with a capital inside are cut before it: "camelCase" is two. Marks (\p{M}) belong to words
// as in the models' files; engines that leave them out differ after combining marks.
inline constexpr std::string_view kTekkenWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kGpt4oWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kDeepseekV3Words =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

inline constexpr PretokenizerTraits kPlain{};
inline constexpr PretokenizerTraits kLlama3Traits{.whole_words = true, .add_bos = true};
inline constexpr PretokenizerTraits kQwen2Traits{.nfc = true};

inline constexpr Scheme kSchemes[] = {
    {"chatglm-bpe", kPlain, {kLlama3Words}},
    {"codeshell", kPlain, {R"(\p{N})", kGpt2Words}},
    {"command-r", kPlain, {R"(\p{N})", kGpt2Words}},
    {"dbrx", kPlain, {kLlama3Words}},
    {"deepseek-coder",
     kPlain,
     {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)",
      R"([\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+|\p{N})"}},
    {"deepseek-r1-qwen", kPlain, {kQwen2Words}},
    {"deepseek-v3",
     kPlain,
     {R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
      kDeepseekV3Words}},
    // What files from before this key existed are read with. Later expressions cut smaller.
    {"default", kPlain, {R"([\p{P}$+<=>^~|]+)", kGpt2Words, R"(\p{N}+)", R"([0-9][0-9][0-9])"}},
    {"exaone", kPlain, {R"(\p{N})", kGpt2Words}},
    {"falcon", kPlain, {R"([\p{P}$+<=>^~|`]+)", kGpt2Words, R"([0-9][0-9][0-9])"}},
    {"falcon3", kLlama3Traits, {kLlama3Words}},
    {"gpt-2", kPlain, {kGpt2Words}},
    {"gpt-4o", kPlain, {kGpt4oWords}},
    {"jais", kPlain, {kGpt2Words}},
    {"llama-bpe", kLlama3Traits, {kLlama3Words}},
    {"llama-v3", kLlama3Traits, {kLlama3Words}},
    {"llama3", kLlama3Traits, {kLlama3Words}},
    {"llama4", kPlain, {kGpt4oWords}},
    {"megrez", kPlain, {kQwen2Words}},
    {"mpt", kPlain, {kGpt2Words}},
    {"olmo", kPlain, {kGpt2Words}},
    {"phi-2", kPlain, {kGpt2Words}},
    {"pixtral", kLlama3Traits, {kLlama3Words}},
    {"qwen2", kQwen2Traits, {kQwen2Words}},
    {"refact", kPlain, {R"(\p{N})", kGpt2Words}},
    {"smaug-bpe", kPlain, {kLlama3Words}},
    {"smollm", kPlain, {R"(\p{N})", kGpt2Words}},
    {"stablelm2", kPlain, {kQwen2Words}},
    {"starcoder", kPlain, {R"(\p{N})", kGpt2Words}},
    {"tekken", kLlama3Traits, {kTekkenWords}},
};

}  // namespace recua::tokenizer
