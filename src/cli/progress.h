#pragma once
/// A progress bar on standard error, only on a terminal and not with --quiet: what goes into a file
/// or a pipe stays clean.
///
/// Appears when the work has taken a moment (a third of a second for loading, two seconds
/// otherwise), so that short work shows nothing; redraws at most ten times a second; wipes its line
/// at the end. Threads: update() from any one at a time.

#include <chrono>
#include <cstddef>
#include <string>

namespace recua::cli {

class ProgressBar {
 public:
  enum class Unit { kBytes, kCount };

  /// label: "loading model.gguf". after: when it appears.
  explicit ProgressBar(std::string label, Unit unit = Unit::kBytes,
                       std::chrono::milliseconds after = std::chrono::milliseconds(2000));
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();  // Wipes the line.

  /// note stands behind the bar: "ppl 4.97".
  void update(std::size_t n_done, std::size_t n_total, const std::string& note = {});
  void finish();

 private:
  std::string label_;
  Unit unit_;
  std::chrono::steady_clock::time_point begin_;
  std::chrono::steady_clock::time_point next_draw_;
  bool is_terminal_;
  bool is_drawn_ = false;
};

/// The line without its terminal codes, narrower than n_columns.
std::string progress_line(const std::string& label, std::size_t n_done, std::size_t n_total,
                          ProgressBar::Unit unit, double seconds, const std::string& note,
                          std::size_t n_columns);

/// "1.1 MiB", "512 B".
std::string bytes_text(std::size_t bytes);

}  // namespace recua::cli
