#pragma once
/// How a run went, step by step: a CSV file that spreadsheets read and a resumed run goes on with.
///
/// The first line is kLossLogHeader; a step without validation leaves that field empty. A line is
/// written at once when its step is done. Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace recua::train {

inline constexpr std::string_view kLossLogHeader =
    "step,loss,validation_loss,learning_rate,gradient_norm,tokens_per_second";

struct LossRecord {
  std::uint64_t step = 0;  // Steps done, this one included: the first is 1.
  double loss = 0.0;       // Mean over the step's targets, natural logarithm.
  std::optional<double> validation_loss = {};
  double learning_rate = 0.0;
  double gradient_norm = 0.0;  // Before clipping.
  double tokens_per_second = 0.0;
};

class LossLog {
 public:
  /// For a run that has done n_steps, 0 for a new one. What an earlier run wrote about later steps
  /// is removed, since they will be done again, and so is a last line that was cut short. A file
  /// that is not there is made.
  /// kIo: cannot read or write. kCorrupt: the file is not such a log, names file and line.
  static Result<LossLog> open(const std::filesystem::path& path, std::uint64_t n_steps);

  LossLog(LossLog&& other) noexcept;
  LossLog& operator=(LossLog&& other) noexcept;
  ~LossLog();

  /// kIo: the disk is full or gone; the record stays in records(). record.step is larger than those
  /// before (a CHECK).
  Result<void> append(const LossRecord& record);

  /// All steps, in order, also those of earlier runs.
  [[nodiscard]] std::span<const LossRecord> records() const { return records_; }

 private:
  LossLog(std::filesystem::path path, std::vector<LossRecord> records, int fd);

  std::filesystem::path path_;
  std::vector<LossRecord> records_;
  int fd_ = -1;
};

/// The steps in a log. kNotFound, kIo, kCorrupt; names file and line. A last line that was cut
/// short is left out.
Result<std::vector<LossRecord>> read_loss_log(const std::filesystem::path& path);

}  // namespace recua::train
