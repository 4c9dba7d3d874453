#include "base/svg.h"

#include <cmath>
#include <iterator>

#include <fmt/format.h>

namespace recua::svg {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // Control characters may not stand in XML.
        out += static_cast<unsigned char>(c) < 32 ? '?' : c;
    }
  }
  return out;
}

std::string begin(double width, double height, std::string_view title, const Style& style) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\">\n<title>{2}</title>\n<style>\n"
      "svg {{ background: #ffffff; font: 11px system-ui, sans-serif; }}\n"
      "text {{ fill: #24292f; }} .faint {{ fill: #6e7781; }} .grid {{ stroke: #d8dee4; }}\n"
      ".title {{ font-size: 15px; font-weight: 600; }} .part {{ font-size: 12px; font-weight: 600; "
      "}}\n{3}\n"
      "@media (prefers-color-scheme: dark) {{\n"
      "svg {{ background: #0d1117; }} text {{ fill: #e6edf3; }} .faint {{ fill: #8b949e; }}\n"
      ".grid {{ stroke: #30363d; }}\n{4}\n}}\n</style>\n",
      width, height, escaped(title), style.light, style.dark);
}

void draw_text(std::string& out, double x, double y, const char* css, const char* anchor,
               std::string_view text) {
  fmt::format_to(std::back_inserter(out),
                 "<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", css,
                 x, y, anchor, escaped(text));
}

void draw_line(std::string& out, const char* css, double x1, double y1, double x2, double y2) {
  fmt::format_to(std::back_inserter(out),
                 "<line class=\"{}\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n",
                 css, x1, x2, y1, y2);
}

double nice_step(double whole, double n_wanted) {
  const double rough = whole / n_wanted;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * 0.999) return factor * power;
  }
  return 10.0 * power;
}

}  // namespace recua::svg
