// A vocabulary learned from text, as a GGUF file without weights.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "gguf/gguf_writer.h"
#include "gguf/keys.h"
#include "model/vocab.h"
#include "tokenizer/bpe_trainer.h"
#include "train/text_file.h"

namespace recua::cli {
namespace {

struct TrainTokenizerFlags {
  std::string data;
  std::string out;
  tokenizer::BpeTrainOptions options;
  bool json = false;
};

Result<void> check(const TrainTokenizerFlags& flags) {
  if (flags.data.empty()) return missing("--data", "the text to learn from");
  if (flags.out.empty()) return missing("--out", "the GGUF file to write");
  std::error_code ignored;
  if (std::filesystem::equivalent(flags.data, flags.out, ignored)) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("--out is the same file as --data ({}); it must be another", flags.out)};
  }
  return ok();
}

Result<tokenizer::TrainedBpe> learn(const TrainTokenizerFlags& flags) {
  auto trainer = tokenizer::BpeTrainer::create(flags.options);
  if (!trainer.ok()) return trainer.error();
  RECUA_ASSIGN_OR_RETURN(const train::TextFile file,
                         train::TextFile::open(flags.data, train::DataFormat::kByName));
  Result<void> added;
  if (file.is_jsonl()) {
    added = file.for_each_line([&](const train::TextFile::Line& line) -> Result<void> {
      RECUA_RETURN_IF_ERROR(trainer->add(line.prompt));
      return trainer->add(line.reply);
    });
  } else {
    added = trainer->add(file.text());
    if (!added.ok()) return std::move(added.error()).within(flags.data);
  }
  if (!added.ok()) return added.error();
  auto trained = trainer->train();
  if (!trained.ok()) return std::move(trained.error()).within(flags.data);
  return trained;
}

Result<void> write(const tokenizer::VocabData& vocab, const std::string& path) {
  gguf::GgufWriter writer;
  // Readers want a name here even in a file without weights.
  writer.add(gguf::keys::kArchitecture, "llama");
  model::add_vocab(vocab, writer);
  RECUA_RETURN_IF_ERROR(writer.begin(path));
  return writer.finish();
}

void print_result(const TrainTokenizerFlags& flags, const tokenizer::TrainedBpe& trained,
                  double seconds) {
  const double bytes_per_token =
      static_cast<double>(trained.n_bytes) / static_cast<double>(trained.n_tokens);
  if (flags.json) {
    nlohmann::ordered_json out;
    out["output"] = flags.out;
    out["vocab_size"] = trained.vocab.tokens.size();
    out["merges"] = trained.vocab.merges.size();
    out["text_bytes"] = trained.n_bytes;
    out["words"] = trained.n_words;
    out["words_distinct"] = trained.n_words_distinct;
    out["text_tokens"] = trained.n_tokens;
    out["bytes_per_token"] = bytes_per_token;
    out["seconds"] = seconds;
    fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return;
  }
  fmt::print("{}: {} tokens from {} words ({} distinct); {:.2f} bytes per token, {:.1f} s\n",
             flags.out, trained.vocab.tokens.size(), trained.n_words, trained.n_words_distinct,
             bytes_per_token, seconds);
  if (trained.vocab.tokens.size() < flags.options.vocab_size) {
    fmt::print("Fewer tokens than the {} asked for: no other pair occurs {} times.\n",
               flags.options.vocab_size, flags.options.count_min);
  }
}

Result<void> train_tokenizer(const TrainTokenizerFlags& flags) {
  RECUA_RETURN_IF_ERROR(check(flags));
  const auto start = std::chrono::steady_clock::now();
  RECUA_ASSIGN_OR_RETURN(const tokenizer::TrainedBpe trained, learn(flags));
  RECUA_RETURN_IF_ERROR(write(trained.vocab, flags.out));
  print_result(flags, trained,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return ok();
}

}  // namespace

void register_train_tokenizer(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("train-tokenizer", "Learn a vocabulary from text");
  const auto flags = std::make_shared<TrainTokenizerFlags>();
  sub->add_option("--data", flags->data,
                  "Text in UTF-8, or .jsonl with \"prompt\" and \"reply\" on each line")
      ->type_name("FILE");
  sub->add_option("--out", flags->out, "The GGUF file to write; appears when it is complete")
      ->type_name("FILE");
  sub->add_option("--vocab-size", flags->options.vocab_size,
                  "Tokens in all: 256 bytes, the merged ones and <|endoftext|>")
      ->capture_default_str();
  sub->add_option("--min-count", flags->options.count_min,
                  "Do not merge pairs that occur less often")
      ->capture_default_str();
  sub->add_option("--pre", flags->options.pre, "How text is cut into words (tokenizer.ggml.pre)")
      ->capture_default_str();
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "The vocabulary is byte-level BPE: every text has tokens, and the same text gives the same\n"
      "vocabulary everywhere.\n\n"
      "Examples:\n"
      "  recua train-tokenizer --data austen.txt --vocab-size 4096 --out tok.gguf\n"
      "  recua tokenize -m tok.gguf -p \"It is a truth universally acknowledged\"");
  sub->callback([flags, &exit_code] {
    const auto result = train_tokenizer(*flags);
    exit_code = result.ok() ? kExitOk : report(result.error());
  });
}

}  // namespace recua::cli
