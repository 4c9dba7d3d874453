// The tokenizer against other implementations' ids, with vocabularies from model files.
#include "model/vocab.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/test_vocab.h"

namespace recua::model {
namespace {

using tokenizer::Tokenizer;
using Ids = std::vector<TokenId>;

const std::filesystem::path kGolden = std::filesystem::path(RECUA_GOLDEN_DIR);

struct Case {
  std::string text;
  Ids ids;                         // Special tokens are text.
  std::optional<Ids> ids_special;  // Special tokens are parsed.
  std::optional<Ids> ids_no_nfc;   // Without normalization.
};

std::vector<nlohmann::json> read_lines(const std::string& name) {
  std::ifstream file(kGolden / "tokenizers/ids" / name);
  EXPECT_TRUE(file) << name;
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  EXPECT_GT(lines.size(), 20u);
  return lines;
}

std::optional<Ids> optional_ids(const nlohmann::json& line, const char* key) {
  if (!line.contains(key)) return std::nullopt;
  return line.at(key).get<Ids>();
}

std::vector<Case> read_cases(const std::string& name) {
  std::vector<Case> cases;
  for (const nlohmann::json& line : read_lines(name)) {
    cases.push_back({.text = line.at("text"),
                     .ids = line.at("ids").get<Ids>(),
                     .ids_special = optional_ids(line, "ids_special"),
                     .ids_no_nfc = optional_ids(line, "ids_no_nfc")});
  }
  return cases;
}

// Strings separated by a line of their own, and one line of ids for each.
std::vector<Case> read_llama_cpp_cases(const std::string& name) {
  const std::filesystem::path folder = kGolden / "tokenizers/llama.cpp";
  std::ifstream inputs(folder / "strings.inp", std::ios::binary);
  std::ifstream outputs(folder / name);
  EXPECT_TRUE(inputs && outputs) << name;
  std::ostringstream all;
  all << inputs.rdbuf();
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  std::vector<Case> cases;
  const std::string text = all.str();
  for (std::size_t at = 0, end = 0; (end = text.find(kSeparator, at)) != std::string::npos;
       at = end + kSeparator.size()) {
    std::string line;
    EXPECT_TRUE(std::getline(outputs, line));
    std::istringstream numbers(line);
    Ids ids;
    for (TokenId id = 0; numbers >> id;) ids.push_back(id);
    cases.push_back(
        {.text = text.substr(at, end - at), .ids = ids, .ids_special = {}, .ids_no_nfc = {}});
  }
  EXPECT_EQ(cases.size(), 46u);
  return cases;
}

Tokenizer load(const std::filesystem::path& path) {
  auto file = gguf::GgufFile::open(path);
  if (!file.ok()) throw std::runtime_error(file.error().message);
  auto made = load_tokenizer(*file);
  if (!made.ok()) throw std::runtime_error(made.error().message);
  return std::move(made).value();
}

void expect_ids(const Tokenizer& tokenizer, const std::vector<Case>& cases) {
  for (const Case& one : cases) {
    SCOPED_TRACE(testing::PrintToString(one.text));
    EXPECT_EQ(tokenizer.encode(one.text, {.add_bos = false, .parse_special = false}), one.ids);
    if (one.ids_special) {
      const Ids ids = tokenizer.encode(one.text, {.add_bos = false, .parse_special = true});
      EXPECT_EQ(ids, *one.ids_special);
      EXPECT_EQ(tokenizer.decode(ids, {.special_text = true}), one.text);
    }
    EXPECT_EQ(
        tokenizer.encode(one.text, {.add_bos = false, .parse_special = false, .normalize = false}),
        one.ids_no_nfc.value_or(one.ids));
    const Ids exact =
        tokenizer.encode(one.text, {.add_bos = false, .parse_special = false, .normalize = false});
    if (one.text.find("\u2581") == std::string::npos) {
      EXPECT_EQ(tokenizer.decode(exact), one.text);
    }
    tokenizer::Detokenizer stream(tokenizer);
    std::string streamed;
    for (const TokenId id : exact) streamed += stream.push(id);
    EXPECT_EQ(streamed + stream.flush(), tokenizer.decode(exact));
  }
}

// Vocabularies that are too large to keep beside the code; the tests skip without them.
std::filesystem::path shared_vocab(const char* name) {
  return std::filesystem::path(RECUA_SHARED_DATA) / "tokenizers/vocab" / name;
}
#define SKIP_WITHOUT(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "skipped: " << (path) << " is not here"

TEST(VocabVectors, Stories260K) {
  std::filesystem::path path = kGolden / "models/stories260K.gguf";
  if (!std::filesystem::exists(path)) {
    path = std::filesystem::path(RECUA_SHARED_DATA) / "models/stories260K.gguf";
  }
  SKIP_WITHOUT(path);
  const Tokenizer tokenizer = load(path);
  expect_ids(tokenizer, read_cases("stories260K.jsonl"));
  EXPECT_EQ(tokenizer.encode("Once upon a time"), (Ids{1, 403, 407, 261, 378}));
  EXPECT_TRUE(tokenizer.is_end_of_generation(2));
  EXPECT_EQ(tokenizer.size(), 512u);
}

TEST(VocabVectors, Gpt2) {
  const auto path = shared_vocab("gpt-2.gguf");
  SKIP_WITHOUT(path);
  const Tokenizer tokenizer = load(path);
  expect_ids(tokenizer, read_cases("gpt2.jsonl"));
  expect_ids(tokenizer, read_llama_cpp_cases("gpt-2.out"));
  EXPECT_FALSE(tokenizer.adds_bos());
}

TEST(VocabVectors, InvalidUtf8) {
  const auto path = shared_vocab("gpt-2.gguf");
  SKIP_WITHOUT(path);
  const Tokenizer tokenizer = load(path);
  for (const nlohmann::json& line : read_lines("invalid_utf8.jsonl")) {
    const std::string hex = line.at("hex");
    SCOPED_TRACE(hex);
    std::string bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2) {
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    }
    const Ids ids = tokenizer.encode(bytes);
    EXPECT_EQ(ids, line.at("gpt2_ids_of_replaced").get<Ids>());
    EXPECT_EQ(tokenizer.decode(ids), line.at("replaced_text").get<std::string>());
    tokenizer::Utf8Stream stream;
    std::string streamed;
    for (const char byte : bytes) streamed += stream.push({&byte, 1});
    EXPECT_EQ(streamed + stream.flush(), line.at("replaced_text").get<std::string>());
  }
}

TEST(VocabVectors, Llama2) {  // Phi 3 has Llama 2's vocabulary and some special tokens more.
  const auto path = shared_vocab("phi-3.gguf");
  SKIP_WITHOUT(path);
  const Tokenizer tokenizer = load(path);
  expect_ids(tokenizer, read_cases("llama2.jsonl"));
  expect_ids(tokenizer, read_llama_cpp_cases("phi-3.out"));
  EXPECT_TRUE(tokenizer.is_end_of_generation(32007));  // <|end|>
}

TEST(VocabVectors, Qwen3) {
  const auto path = shared_vocab("qwen3.gguf");
  SKIP_WITHOUT(path);
  const Tokenizer tokenizer = load(path);
  expect_ids(tokenizer, read_cases("qwen3.jsonl"));
  expect_ids(tokenizer, read_llama_cpp_cases("qwen2.out"));
  EXPECT_TRUE(tokenizer.is_end_of_generation(151645));  // <|im_end|>
  EXPECT_TRUE(tokenizer.is_end_of_generation(151643));  // <|endoftext|>
}

TEST(VocabVectors, Llama3) {  // Its licence does not allow us to ship the vocabulary.
  const char* const path = std::getenv("RECUA_LLAMA3_VOCAB");
  if (path == nullptr) GTEST_SKIP() << "skipped: RECUA_LLAMA3_VOCAB names no GGUF file";
  const Tokenizer tokenizer = load(path);
  expect_ids(tokenizer, read_cases("llama3.jsonl"));
  expect_ids(tokenizer, read_llama_cpp_cases("llama-bpe.out"));
  EXPECT_TRUE(tokenizer.is_end_of_generation(128009));  // <|eot_id|>
}

TEST(VocabFile, ReadsBackWhatWasWritten) {
  for (tokenizer::VocabData data :
       {tokenizer::sentencepiece_test_vocab(), tokenizer::byte_level_test_vocab()}) {
    data.add_bos = true;
    data.add_space_prefix = false;
    data.pad = 7;
    gguf::GgufWriter writer;
    add_vocab(data, writer);
    const std::vector<std::byte> bytes = writer.header();
    const auto file = gguf::GgufFile::parse(bytes, "vocab.gguf");
    ASSERT_TRUE(file.ok()) << file.error().message;
    const auto read = read_vocab(*file);
    ASSERT_TRUE(read.ok()) << read.error().message;
    EXPECT_EQ(read->model, data.model);
    EXPECT_EQ(read->pre, data.pre.empty() ? "default" : data.pre);
    EXPECT_EQ(read->tokens, data.tokens);
    EXPECT_EQ(read->scores, data.scores);
    EXPECT_EQ(read->types, data.types);
    EXPECT_EQ(read->merges, data.merges);
    EXPECT_EQ(read->bos, data.bos);
    EXPECT_EQ(read->eos, data.eos);
    EXPECT_EQ(read->eot, data.eot);
    EXPECT_EQ(read->unk, data.unk);
    EXPECT_EQ(read->pad, data.pad);
    EXPECT_EQ(read->add_bos, data.add_bos);
    EXPECT_EQ(read->add_eos, std::nullopt);
    EXPECT_EQ(read->add_space_prefix, data.add_space_prefix);
  }
}

TEST(VocabFile, SaysWhichKeyIsWrong) {
  const auto load_error = [](const std::vector<std::pair<std::string, std::uint32_t>>& numbers) {
    std::string out = "GGUF";
    const auto number = [&out](auto value) {
      out.append(reinterpret_cast<const char*>(&value), sizeof value);
    };
    const auto text = [&](std::string_view value) {
      number(std::uint64_t{value.size()});
      out += value;
    };
    number(std::uint32_t{3});
    number(std::uint64_t{0});
    number(std::uint64_t{2 + numbers.size()});
    text("tokenizer.ggml.model");
    number(std::uint32_t{8});
    text("llama");
    text("tokenizer.ggml.tokens");
    number(std::uint32_t{9});
    number(std::uint32_t{8});
    number(std::uint64_t{1});
    text("a");
    for (const auto& [key, value] : numbers) {
      text(key);
      number(std::uint32_t{4});
      number(value);
    }
    const auto file = gguf::GgufFile::parse(as_bytes(out), "tiny.gguf");
    if (!file.ok()) return file.error().message;
    const auto made = load_tokenizer(*file);
    return made.ok() ? std::string("no error") : made.error().message;
  };
  EXPECT_EQ(
      load_error({{"tokenizer.ggml.eos_token_id", 3000000000u}}),
      "tiny.gguf: tokenizer.ggml.eos_token_id is 3000000000; the vocabulary has 1 tokens, so it "
      "must be less (4294967295 means none)");
  EXPECT_EQ(
      load_error({{"tokenizer.ggml.eos_token_id", 4294967295u}}),
      "tiny.gguf: tokenizer.ggml.scores has 0 entries and tokenizer.ggml.tokens has 1; must be "
      "equal");
  EXPECT_NE(load_error({{"tokenizer.ggml.pre", 1}}).find("tokenizer.ggml.pre"), std::string::npos);
  EXPECT_NE(load_error({{"tokenizer.ggml.merges", 1}}).find("tokenizer.ggml.merges"),
            std::string::npos);
}

}  // namespace
}  // namespace recua::model
