#include "cli/units.h"

#include <array>
#include <string_view>

#include <fmt/format.h>

namespace recua::cli {
namespace {

std::string scaled(std::uint64_t n, const std::array<std::string_view, 5>& units) {
  if (n < 1000) return units[0].empty() ? fmt::format("{}", n) : fmt::format("{} {}", n, units[0]);
  double value = static_cast<double>(n);
  std::size_t unit = 0;
  while (value >= 999.95 && unit + 1 < units.size()) {  // 999.95 would print as 1000.0.
    value /= 1000.0;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace

std::string human_bytes(std::uint64_t bytes) {
  return scaled(bytes, {"B", "KB", "MB", "GB", "TB"});
}

std::string human_count(std::uint64_t n) { return scaled(n, {"", "K", "M", "B", "T"}); }

}  // namespace recua::cli
