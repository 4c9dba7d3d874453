#pragma once
/// What the pictures that recua writes have in common: one SVG file each, without scripts or fonts
/// of its own, readable on light and dark ground. Lengths are pixels.

#include <string>
#include <string_view>

namespace recua::svg {

/// text as it may stand in an element or attribute; control characters become question marks.
[[nodiscard]] std::string escaped(std::string_view text);

/// Style rules of a picture besides the common ones: classes title, part, faint, grid (for lines).
struct Style {
  std::string_view light;
  std::string_view dark;
};

/// The picture's opening tag, its name for screen readers, and the style. Ends with a new line.
[[nodiscard]] std::string begin(double width, double height, std::string_view title,
                                const Style& style);

/// anchor: start, middle or end, the part of the text that is at x.
void draw_text(std::string& out, double x, double y, const char* css, const char* anchor,
               std::string_view text);

void draw_line(std::string& out, const char* css, double x1, double y1, double x2, double y2);

/// 1, 2 or 5 times a power of ten, so that about n_wanted steps make up the whole. whole > 0.
[[nodiscard]] double nice_step(double whole, double n_wanted);

}  // namespace recua::svg
