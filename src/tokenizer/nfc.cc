// Decomposes character by character, puts each run of combining marks into canonical order, and
// lets utf8proc compose. Its own one-call form orders a run by swapping neighbours, which is
// quadratic in the length of the run: a megabyte of alternating marks would take minutes.
#include "tokenizer/nfc.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <utf8proc.h>

#include "base/check.h"
#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

std::uint64_t combining_class(std::int32_t code_point) {
  return static_cast<std::uint64_t>(utf8proc_get_property(code_point)->combining_class);
}

// By class, and within a class in the order of the text.
void sort_combining_marks(std::vector<std::int32_t>& points) {
  const auto is_mark = [](std::int32_t point) { return combining_class(point) != 0; };
  std::vector<std::uint64_t> keys;  // Class (8 bits), position in the run (35), code point (21).
  for (auto begin = points.begin(); begin != points.end();) {
    begin = std::find_if(begin, points.end(), is_mark);
    const auto end = std::find_if_not(begin, points.end(), is_mark);
    keys.clear();
    for (auto mark = begin; mark != end; ++mark) {
      keys.push_back(combining_class(*mark) << 56 | std::uint64_t{keys.size()} << 21 |
                     static_cast<std::uint64_t>(*mark));
    }
    std::ranges::sort(keys);
    for (const std::uint64_t key : keys) *begin++ = static_cast<std::int32_t>(key & 0x1FFFFF);
  }
}

}  // namespace

std::string to_nfc(std::string_view text) {
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), is_ascii)) return std::string(text);

  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<std::int32_t> points;
  points.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    RECUA_CHECK(step.valid);
    rest.remove_prefix(step.n_bytes);
    std::int32_t parts[8];  // The longest canonical decomposition has 4 code points.
    const auto n = utf8proc_decompose_char(static_cast<std::int32_t>(step.code_point), parts, 8,
                                           kOptions, nullptr);
    RECUA_CHECK(n >= 0 && n <= 8);
    points.insert(points.end(), parts, parts + n);
  }
  sort_combining_marks(points);
  const auto n_composed = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), kOptions);
  RECUA_CHECK(n_composed >= 0);

  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n_composed; ++i) {
    append_utf8(static_cast<char32_t>(points[static_cast<std::size_t>(i)]), out);
  }
  return out;
}

}  // namespace recua::tokenizer
