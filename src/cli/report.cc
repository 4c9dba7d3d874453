#include <cstdio>

#include <fmt/format.h>

#include "cli/commands.h"

namespace recua::cli {

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

Error missing(std::string_view flag, std::string_view what) {
  return {ErrorCode::kInvalidArgument, fmt::format("{} is missing: {}", flag, what)};
}

}  // namespace recua::cli
