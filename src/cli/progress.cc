#include "cli/progress.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/log.h"

namespace recua::cli {
namespace {

constexpr auto kRedrawInterval = std::chrono::milliseconds(100);

std::size_t terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

std::string bytes_text(std::size_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string progress_line(const std::string& label, std::size_t n_done, std::size_t n_total,
                          ProgressBar::Unit unit, double seconds, const std::string& note,
                          std::size_t n_columns) {
  constexpr std::size_t kBarWidth = 24;
  const bool is_bytes = unit == ProgressBar::Unit::kBytes;
  n_done = std::min(n_done, n_total);
  const double share =
      n_total == 0 ? 0.0 : static_cast<double>(n_done) / static_cast<double>(n_total);
  std::string counts = is_bytes ? fmt::format("{} / {}", bytes_text(n_done), bytes_text(n_total))
                                : fmt::format("{} / {}", n_done, n_total);
  if (seconds > 0.1 && n_done > 0) {
    const double rate = static_cast<double>(n_done) / seconds;
    if (is_bytes) counts += fmt::format("  {}/s", bytes_text(static_cast<std::size_t>(rate)));
    const double left = static_cast<double>(n_total - n_done) / rate;
    if (left >= 1) counts += fmt::format("  {:.0f} s left", left);
  }
  if (!note.empty()) counts += "  " + note;
  const auto n_full = static_cast<std::size_t>(share * kBarWidth);
  const std::string bar = std::string(n_full, '#') + std::string(kBarWidth - n_full, '.');
  std::string line = fmt::format("{} [{}] {:3.0f} %  {}", label, bar, 100 * share, counts);
  if (line.size() >= n_columns) line = fmt::format("{} {:3.0f} %  {}", label, 100 * share, counts);
  if (line.size() >= n_columns) line.resize(n_columns > 0 ? n_columns - 1 : 0);
  return line;
}

ProgressBar::ProgressBar(std::string label, Unit unit, std::chrono::milliseconds after)
    : label_(std::move(label)),
      unit_(unit),
      begin_(std::chrono::steady_clock::now()),
      next_draw_(begin_ + after),
      is_terminal_(::isatty(STDERR_FILENO) != 0 && log_enabled(LogLevel::kWarning)) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::update(std::size_t n_done, std::size_t n_total, const std::string& note) {
  if (!is_terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_draw_) return;
  next_draw_ = now + kRedrawInterval;
  is_drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const std::string line =
      progress_line(label_, n_done, n_total, unit_, seconds, note, terminal_columns());
  fmt::print(stderr, "\r\x1b[K{}", line);  // Back to the first column, clear the line.
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (!is_drawn_) return;
  is_drawn_ = false;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
}

}  // namespace recua::cli
