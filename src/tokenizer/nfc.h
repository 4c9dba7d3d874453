#pragma once
/// Unicode normalization form C, as the tokenizers of some models do first.
///
/// Time: O(n log n) whatever the text is: runs of combining marks are sorted, not bubbled into
/// order. Source: Unicode Standard Annex #15 (Unicode 15, the tables of utf8proc 2.8).

#include <string>
#include <string_view>

namespace recua::tokenizer {

/// text is valid UTF-8.
[[nodiscard]] std::string to_nfc(std::string_view text);

}  // namespace recua::tokenizer
