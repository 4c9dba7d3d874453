#pragma once
/// The log of a training run: one line of CSV per step, that spreadsheets and plots read.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/result.h"
#include "train/trainer.h"

namespace recua::cli {

class TrainLog {
 public:
  /// Keeps the lines of the steps up to n_done (a resumed run does those after them again), or
  /// begins anew. kIo: names the path.
  static Result<TrainLog> open(const std::filesystem::path& path, std::uint64_t n_done);

  /// kIo: the disk is full, say.
  Result<void> add(const train::StepReport& report, std::optional<double> validation_loss,
                   double tokens_per_second);

 private:
  TrainLog(std::filesystem::path path, std::ofstream file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace recua::cli
