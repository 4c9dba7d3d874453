#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include "base/log.h"
#include "cli/commands.h"

namespace recua::cli {
namespace {

Error cannot_write(int reason) {
  const std::string why = reason != 0 ? fmt::format(": {}", std::strerror(reason)) : "";
  return {ErrorCode::kIo, "cannot write to standard output" + why};
}

}  // namespace

int exit_code_of(const Error& error) {
  if (error.code == ErrorCode::kInvalidArgument) return kExitUsage;
  if (error.code == ErrorCode::kCancelled) return kExitInterrupted;
  return kExitFailure;
}

int report(const Error& error, std::string_view hint) {
  // Results first, so that the message does not stand in the middle of them on a terminal.
  std::fflush(stdout);
  fmt::print(stderr, "recua: {}\n", error.message);
  if (!hint.empty()) fmt::print(stderr, "hint: {}\n", hint);
  return exit_code_of(error);
}

void show_info_lines() {
  if (log_enabled(LogLevel::kWarning) && !log_enabled(LogLevel::kDebug)) {
    set_log_level(LogLevel::kInfo);
  }
}

Result<void> write_output(std::string_view text) {
  const std::size_t n_written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (n_written == text.size() && std::fflush(stdout) == 0) return ok();
  return cannot_write(errno);
}

Result<void> flush_output() {
  if (std::fflush(stdout) != 0) return cannot_write(errno);
  if (std::ferror(stdout) != 0) return cannot_write(0);  // Of an earlier write; nobody kept why.
  return ok();
}

Error missing(std::string_view flag, std::string_view what) {
  return {ErrorCode::kInvalidArgument, fmt::format("{} is missing: {}", flag, what)};
}

}  // namespace recua::cli
