#include "cli/train_log.h"

#include <charconv>
#include <string>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/mapped_file.h"

namespace recua::cli {
namespace {

constexpr std::string_view kHeading =
    "step,loss,validation_loss,learning_rate,gradient_norm,tokens_per_second\n";
constexpr std::size_t kLogBytesMax = std::size_t{1} << 30;

/// The step that a line begins with; 0 for a line that is none.
std::uint64_t step_of(std::string_view line) {
  std::uint64_t step = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), step);
  const bool whole = error == std::errc{} && end != line.data() + line.size() && *end == ',';
  return whole ? step : 0;
}

}  // namespace

Result<TrainLog> TrainLog::open(const std::filesystem::path& path, std::uint64_t n_done) {
  std::string kept(kHeading);
  std::error_code ignored;
  if (n_done > 0 && std::filesystem::exists(path, ignored)) {
    RECUA_ASSIGN_OR_RETURN(const std::string old, read_file(path, kLogBytesMax));
    for (std::size_t at = 0; at < old.size();) {
      const std::size_t end = old.find('\n', at);
      if (end == std::string::npos) break;  // A line that was cut.
      const std::string_view line = std::string_view(old).substr(at, end + 1 - at);
      const std::uint64_t step = step_of(line);
      if (step >= 1 && step <= n_done) kept += line;
      at = end + 1;
    }
  }
  RECUA_RETURN_IF_ERROR(write_file_atomically(path, as_bytes(kept), Durability::kMayBeLost));
  std::ofstream file(path, std::ios::app);
  if (!file)
    return Error{ErrorCode::kIo, fmt::format("{}: cannot open for writing", path.string())};
  return TrainLog(path, std::move(file));
}

Result<void> TrainLog::add(const train::StepReport& report, std::optional<double> validation_loss,
                           double tokens_per_second) {
  const std::string validation = validation_loss ? fmt::format("{:.6f}", *validation_loss) : "";
  file_ << fmt::format("{},{:.6f},{},{:.6g},{:.6g},{:.1f}\n", report.step, report.loss, validation,
                       report.lr, report.grad_norm, tokens_per_second);
  file_.flush();
  if (file_) return ok();
  return Error{ErrorCode::kIo, fmt::format("{}: cannot write", path_.string())};
}

}  // namespace recua::cli
