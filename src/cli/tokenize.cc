// Text to token ids and back, for people and scripts that want to see what a model sees.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/flags.h"
#include "gguf/gguf_file.h"
#include "model/vocab.h"
#include "tokenizer/tokenizer.h"

namespace recua::cli {
namespace {

struct TokenizeFlags {
  std::string model;
  PromptFlags prompt;
  bool no_bos = false;
  bool no_special = false;
  bool no_nfc = false;
  bool json = false;
  bool decode = false;
};

// "1,2 3\n": ids between commas and white space.
Result<std::vector<TokenId>> parse_ids(std::string text, const tokenizer::Tokenizer& tokenizer) {
  constexpr std::string_view kSeparators = ", \t\r\n";
  std::ranges::replace_if(
      text, [&](char c) { return kSeparators.find(c) != kSeparators.npos; }, ',');
  const auto ends = std::ranges::unique(text, [](char a, char b) { return a == ',' && b == ','; });
  text.erase(ends.begin(), ends.end());
  if (text.starts_with(',')) text.erase(0, 1);
  if (text.ends_with(',')) text.pop_back();
  if (text.empty()) return std::vector<TokenId>();
  RECUA_ASSIGN_OR_RETURN(std::vector<TokenId> ids, parse_token_ids("--decode", text));
  for (const TokenId id : ids) {
    if (static_cast<std::size_t>(id) < tokenizer.size()) continue;
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--decode: {} is out of range, the vocabulary has ids from 0 to {}",
                             id, tokenizer.size() - 1)};
  }
  return ids;
}

Result<void> print_text(const std::vector<TokenId>& ids, const tokenizer::Tokenizer& tokenizer,
                        bool json) {
  const std::string text = tokenizer.decode(ids, {.special_text = true});
  if (json) {
    // JSON cannot hold bytes that are not UTF-8; they are shown as U+FFFD.
    constexpr auto kReplace = nlohmann::json::error_handler_t::replace;
    fmt::print("{}\n", nlohmann::json({{"text", text}}).dump(-1, ' ', false, kReplace));
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return ok();
}

void print_ids(const std::vector<TokenId>& ids, const tokenizer::Tokenizer& tokenizer, bool json) {
  if (json) {
    fmt::print("{{\"ids\":[{}]}}\n", fmt::join(ids, ","));
    return;
  }
  for (const TokenId id : ids) fmt::print("{:>7}  {:?}\n", id, tokenizer.piece(id));
}

Result<void> tokenize(const TokenizeFlags& flags) {
  if (flags.model.empty()) return missing("-m/--model", "the GGUF file whose vocabulary to use");
  RECUA_ASSIGN_OR_RETURN(const gguf::GgufFile file, gguf::GgufFile::open(flags.model));
  RECUA_ASSIGN_OR_RETURN(const tokenizer::Tokenizer tokenizer, model::load_tokenizer(file));
  RECUA_ASSIGN_OR_RETURN(const std::string text, flags.prompt.read());
  if (flags.decode) {
    RECUA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, parse_ids(text, tokenizer));
    return print_text(ids, tokenizer, flags.json);
  }
  const tokenizer::EncodeOptions options{
      .add_bos = !flags.no_bos, .parse_special = !flags.no_special, .normalize = !flags.no_nfc};
  print_ids(tokenizer.encode(text, options), tokenizer, flags.json);
  return ok();
}

}  // namespace

void register_tokenize(CLI::App& app, int& exit_code) {
  auto* const sub =
      app.add_subcommand("tokenize", "Show the token ids that a model sees for a text");
  const auto flags = std::make_shared<TokenizeFlags>();
  sub->add_option("-m,--model", flags->model, "GGUF file whose vocabulary to use")
      ->type_name("FILE");
  flags->prompt.add(*sub);
  sub->add_flag("--json", flags->json, "Print one JSON object: {\"ids\":[...]}");
  sub->add_flag("--no-bos", flags->no_bos,
                "Nothing around the text, even if the model asks for BOS or EOS");
  sub->add_flag("--no-special", flags->no_special,
                "Text such as <|im_end|> is text, not the control token");
  sub->add_flag("--no-nfc", flags->no_nfc,
                "No Unicode normalization, even if the model was trained so");
  sub->add_flag("--decode", flags->decode,
                "The other way: the input is ids, by commas or spaces; print their text");
  sub->footer(
      "Examples:\n"
      "  recua tokenize -m model.gguf -p \"Hello, world!\"\n"
      "  recua tokenize -m model.gguf -f prompt.txt --json --no-bos\n"
      "  recua tokenize -m model.gguf --decode -p 1,403,407");
  sub->callback([flags, &exit_code] {
    const Result<void> done = tokenize(*flags);
    exit_code = done.ok() ? kExitOk : report(done.error());
  });
}

}  // namespace recua::cli
