#pragma once
/// UTF-8 one character at a time, over bytes that may not be valid.
///
/// Source: The Unicode Standard 15.0, section 3.9: table 3-7 (well-formed sequences) and "U+FFFD
/// substitution of maximal subparts", which is also what the WHATWG decoder does.

#include <cstddef>
#include <string>
#include <string_view>

namespace recua::tokenizer {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  char32_t code_point = 0;  // U+FFFD if not valid.
  std::size_t n_bytes = 1;  // Of the character, or of the maximal invalid part. 1 to 4.
  bool valid = false;
  /// Not valid, ends with the text, and more bytes could still make it a character.
  bool incomplete = false;
};

/// The character or maximal invalid part that text begins with. text is not empty.
[[nodiscard]] Utf8Step utf8_step(std::string_view text);

[[nodiscard]] bool is_valid_utf8(std::string_view text);

/// text with every maximal invalid part replaced by U+FFFD.
[[nodiscard]] std::string replace_invalid_utf8(std::string_view text);

/// Appends code_point, which is at most U+10FFFF.
void append_utf8(char32_t code_point, std::string& out);

}  // namespace recua::tokenizer
