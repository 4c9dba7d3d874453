#pragma once
/// The command line before the parser sees it, and help when the parser does not understand it.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace recua::cli {

/// The arguments behind the program's name, with the two-letter short flags that llama.cpp users
/// type (-ub, -ctk, -ctv, -ngl...) written as the long ones that the parser knows. What follows a
/// flag that takes free text (-p) is left alone.
/// kInvalidArgument: a flag of llama.cpp that has no meaning here; says what to do instead.
Result<std::vector<std::string>> normalize_arguments(std::span<const char* const> arguments);

/// The candidate with the fewest edits (insert, delete, replace, swap neighbours) from word, or
/// empty when none is close enough to be meant.
std::string_view nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace recua::cli
