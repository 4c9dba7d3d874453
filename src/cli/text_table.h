#pragma once
/// Columns of text for a terminal.

#include <string>
#include <vector>

namespace recua::cli {

/// Each row one line, columns as wide as their widest cell and two spaces apart, nothing behind the
/// last one. A '>' as first character of a heading (row 0) aligns its column to the right and is
/// not printed. Widths are counted in characters of UTF-8.
std::string text_table(std::vector<std::vector<std::string>> rows);

}  // namespace recua::cli
