// recua: one program, many subcommands. Wires nothing itself; catches what nobody else did.

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "cli/arguments.h"
#include "cli/build_info.h"
#include "cli/commands.h"

namespace recua::cli {
namespace {

struct LogFlags {
  bool verbose = false;
  bool quiet = false;

  void apply() const {
    set_log_level(quiet ? LogLevel::kError : verbose ? LogLevel::kDebug : LogLevel::kWarning);
  }
};

void add_log_flags(CLI::App& app, LogFlags& flags) {
  if (app.get_option_no_throw("--verbose") == nullptr)
    app.add_flag("-v,--verbose", flags.verbose, "Say why decisions are taken, on standard error");
  if (app.get_option_no_throw("--quiet") == nullptr)
    app.add_flag("--quiet", flags.quiet, "Only errors on standard error, no progress");
}

void add_log_flags_below(CLI::App& app, LogFlags& flags) {
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) {
    add_log_flags(*sub, flags);
    // Before the subcommand's own callback.
    sub->parse_complete_callback([&flags] { flags.apply(); });
    add_log_flags_below(*sub, flags);
  }
}

/// Every flag or subcommand that could have been meant.
std::vector<std::string> known_words(const CLI::App& app, bool flags) {
  std::vector<std::string> words;
  if (flags) {
    for (const CLI::Option* option : app.get_options())
      for (const std::string& name : option->get_lnames()) words.push_back("--" + name);
  } else {
    for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
      words.push_back(sub->get_name());
  }
  return words;
}

/// The parser's complaint about a flag's value in our words. Options that are not text are numbers.
std::string describe(const CLI::ParseError& error) {
  std::string what = error.what();
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) {
    const std::size_t name = what.find("--");
    const std::size_t equals = what.find(" = ", name);
    if (name != std::string::npos && equals != std::string::npos) {
      return fmt::format("{} is '{}', which is not a number that it can take",
                         what.substr(name, equals - name), what.substr(equals + 3));
    }
  }
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::size_t colon = what.find(':');
    if (what.starts_with("--") && what.find("missing") != std::string::npos)
      return fmt::format("{} needs a value behind it", what.substr(0, colon));
  }
  return what;
}

/// What is wrong with the command line, best guess first: a word that nobody knows explains more
/// than the flag that is then missing.
int report_parse_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* sub = nullptr;
  std::string command = "recua";
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    sub = at = at->get_subcommands().front();
    command += " " + sub->get_name();
  }
  const CLI::App& asked = sub == nullptr ? app : *sub;
  const std::string help = command + " --help";
  // The app collects the leftovers of its subcommands too.
  const std::vector<std::string> unknown = app.remaining(true);
  if (unknown.empty()) {
    return report({ErrorCode::kInvalidArgument, describe(error)}, help);
  }
  const std::string word = unknown.front().substr(0, unknown.front().find('='));
  const bool is_flag = word.starts_with('-');
  const std::vector<std::string> words = known_words(asked, is_flag);
  const std::string_view guess = nearest(word, words);
  const bool has_subcommands = !asked.get_subcommands([](const CLI::App*) { return true; }).empty();
  const char* const kind = is_flag ? "flag" : has_subcommands ? "subcommand" : "argument";
  const std::string meant =
      guess.empty() ? std::string{} : fmt::format("; did you mean {}?", guess);
  return report({ErrorCode::kInvalidArgument, fmt::format("unknown {} {}{}", kind, word, meant)},
                help);
}

int run_subcommand(int argc, const char* const* argv) {
  CLI::App app{"recua runs one large language model on one machine or across many.", "recua"};
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", version_text());
  app.require_subcommand(0, 1);
  app.footer(
      "Examples:\n"
      "  recua run -m model.gguf -p \"Once upon a time\" -n 64\n"
      "  recua run -m model.gguf --workers 10.0.0.5:7500,10.0.0.6:7500 -p \"Hello\"\n"
      "  recua <subcommand> --help");
  int exit_code = kExitOk;
  LogFlags log_flags;
  add_log_flags(app, log_flags);
  register_run(app, exit_code);
  register_perplexity(app, exit_code);
  register_bench(app, exit_code);
  register_inspect(app, exit_code);
  register_tokenize(app, exit_code);
  register_quantize(app, exit_code);
  register_synth(app, exit_code);
  register_train(app, exit_code);
  register_worker(app, exit_code);
  register_net(app, exit_code);
  register_plan(app, exit_code);
  register_train_tokenizer(app, exit_code);
  register_export_lora(app, exit_code);
  register_version(app, exit_code);
  add_log_flags_below(app, log_flags);
  log_flags.apply();

  auto arguments =
      normalize_arguments({argv + 1, static_cast<std::size_t>(argc > 0 ? argc - 1 : 0)});
  if (!arguments.ok()) return report(arguments.error());
  // The parser takes its vector from the back.
  std::vector<std::string> reversed(arguments->rbegin(), arguments->rend());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    // --help and --version arrive as errors with the code 0; the parser knows how to print them.
    if (error.get_exit_code() == 0) return app.exit(error) == 0 ? kExitOk : kExitFailure;
    return report_parse_error(app, error);
  }
  if (app.get_subcommands().empty()) {
    fmt::print("{}", app.help());
    return kExitUsage;
  }
  return exit_code;
}

int run_main(int argc, const char* const* argv) {
  int exit_code = kExitFailure;
  try {
    exit_code = run_subcommand(argc, argv);
  } catch (const std::system_error&) {
    if (const auto written = flush_output(); !written.ok()) return report(written.error());
    throw;
  }
  if (exit_code != kExitOk) return exit_code;
  // Results that did not arrive are no success.
  if (const auto written = flush_output(); !written.ok()) return report(written.error());
  return exit_code;
}

}  // namespace
}  // namespace recua::cli

int main(int argc, char** argv) {
  // A peer or a pipe that goes away is an error value of write(), not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  // So is a file that reaches the limit of its size (ulimit -f).
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return recua::cli::run_main(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("recua: out of memory; try a smaller context (-c) or batch (-b, -ub)\n", stderr);
  } catch (const std::exception& error) {
    fmt::print(stderr, "recua: unexpected failure: {}\n", error.what());
  }
  return recua::cli::kExitFailure;
}
