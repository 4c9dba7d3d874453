#pragma once
/// The subcommands. Each is one file, src/cli/<name>.cc, with one register_<name>(): it adds the
/// subcommand with its flags, its help and a footer of examples to the app, and a callback that
/// does the work and sets exit_code. main.cc calls those that exist.
///
/// Exit codes: kExitOk; kExitFailure: something outside was wrong (a file, a peer, no memory);
/// kExitUsage: the command line was wrong (also every ErrorCode::kInvalidArgument);
/// kExitInterrupted: Ctrl-C, as shells expect.
///
/// Flags: scalar options take their last value when given twice. Do not mark options required():
/// check them in the callback with `return report(missing("-m/--model", "the GGUF file to ..."))`,
/// so that a misspelt flag is reported before a missing one.

#include <string>
#include <string_view>

#include "base/result.h"
#include "cli/app.h"

namespace recua::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

void register_run(CLI::App& app, int& exit_code);
void register_worker(CLI::App& app, int& exit_code);
void register_inspect(CLI::App& app, int& exit_code);
void register_tokenize(CLI::App& app, int& exit_code);
void register_quantize(CLI::App& app, int& exit_code);
void register_perplexity(CLI::App& app, int& exit_code);
void register_synth(CLI::App& app, int& exit_code);
void register_bench(CLI::App& app, int& exit_code);
void register_net(CLI::App& app, int& exit_code);
void register_plan(CLI::App& app, int& exit_code);
void register_train(CLI::App& app, int& exit_code);
void register_train_tokenizer(CLI::App& app, int& exit_code);
void register_export_lora(CLI::App& app, int& exit_code);
void register_version(CLI::App& app, int& exit_code);

/// Prints "recua: <message>" on standard error, and "hint: <hint>" below it if there is one.
/// Returns the exit code for the error.
int report(const Error& error, std::string_view hint = {});

/// For commands whose info lines somebody watches: shows them, unless --quiet or --verbose has set
/// what is shown. Other commands show results instead.
void show_info_lines();

/// Writes to standard output at once. kIo: "cannot write to standard output: ...": nobody reads it
/// any more, or the disk is full.
Result<void> write_output(std::string_view text);

/// Writes what is still buffered for standard output. kIo also when an earlier write failed.
Result<void> flush_output();

/// kInvalidArgument: "flag is missing: what".
Error missing(std::string_view flag, std::string_view what);

/// The exit code an error stands for.
int exit_code_of(const Error& error);

}  // namespace recua::cli
