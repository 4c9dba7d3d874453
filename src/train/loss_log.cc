#include "train/loss_log.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/mapped_file.h"

namespace recua::train {
namespace {

constexpr std::size_t kLogBytesMax = std::size_t{1} << 30;
constexpr std::size_t kFields = 6;

// Seven digits: more than a loss in single precision has.
std::string to_line(const LossRecord& record) {
  const std::string validation =
      record.validation_loss ? fmt::format("{:.7g}", *record.validation_loss) : std::string();
  return fmt::format("{},{:.7g},{},{:.7g},{:.7g},{:.7g}\n", record.step, record.loss, validation,
                     record.learning_rate, record.gradient_norm, record.tokens_per_second);
}

template <class T>
bool parse_number(std::string_view text, T& out) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, out);
  return error == std::errc() && stop == end;
}

std::optional<LossRecord> parse_record(std::string_view line) {
  std::array<std::string_view, kFields> fields;
  for (std::size_t i = 0; i < kFields; ++i) {
    const std::size_t comma = line.find(',');
    if ((comma == std::string_view::npos) != (i + 1 == kFields)) return std::nullopt;
    fields[i] = line.substr(0, comma);
    line.remove_prefix(std::min(line.size(), fields[i].size() + 1));
  }
  LossRecord record;
  double validation = 0.0;
  if (!fields[2].empty()) {
    if (!parse_number(fields[2], validation)) return std::nullopt;
    record.validation_loss = validation;
  }
  const bool good = parse_number(fields[0], record.step) && parse_number(fields[1], record.loss) &&
                    parse_number(fields[3], record.learning_rate) &&
                    parse_number(fields[4], record.gradient_norm) &&
                    parse_number(fields[5], record.tokens_per_second);
  return good ? std::optional(record) : std::nullopt;
}

Error corrupt_line(const std::filesystem::path& path, std::size_t number, std::string_view what) {
  return {ErrorCode::kCorrupt, fmt::format("{}: line {}: {}", path.string(), number, what)};
}

Error system_error(const std::filesystem::path& path, const char* what) {
  return {ErrorCode::kIo,
          fmt::format("{}: cannot {}: {}", path.string(), what, std::strerror(errno))};
}

Result<void> write_all(int fd, const std::filesystem::path& path, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(path, "write");
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return ok();
}

}  // namespace

Result<std::vector<LossRecord>> read_loss_log(const std::filesystem::path& path) {
  RECUA_ASSIGN_OR_RETURN(const std::string text, read_file(path, kLogBytesMax));
  std::vector<LossRecord> records;
  std::string_view rest = text;
  for (std::size_t number = 1;; ++number) {
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) break;  // Empty, or cut short.
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number == 1) {
      if (line != kLossLogHeader)
        return corrupt_line(path, 1, fmt::format("must be \"{}\"", kLossLogHeader));
      continue;
    }
    const std::optional<LossRecord> record = parse_record(line);
    if (!record)
      return corrupt_line(path, number, fmt::format("must hold the numbers {}", kLossLogHeader));
    if (!records.empty() && record->step <= records.back().step) {
      return corrupt_line(path, number,
                          fmt::format("step {} comes after step {}; steps must grow", record->step,
                                      records.back().step));
    }
    records.push_back(*record);
  }
  return records;
}

Result<LossLog> LossLog::open(const std::filesystem::path& path, std::uint64_t n_steps) {
  std::vector<LossRecord> records;
  if (n_steps > 0) {
    auto earlier = read_loss_log(path);
    if (earlier.ok()) {
      records = std::move(earlier).value();
    } else if (earlier.error().code != ErrorCode::kNotFound) {
      return earlier.error();
    }
    const auto later = std::ranges::find_if(
        records, [n_steps](const LossRecord& record) { return record.step > n_steps; });
    records.erase(later, records.end());
  }
  std::string kept = fmt::format("{}\n", kLossLogHeader);
  for (const LossRecord& record : records) kept += to_line(record);
  RECUA_RETURN_IF_ERROR(write_file_atomically(path, as_bytes(kept)));
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return system_error(path, "open");
  return LossLog(path, std::move(records), fd);
}

LossLog::LossLog(std::filesystem::path path, std::vector<LossRecord> records, int fd)
    : path_(std::move(path)), records_(std::move(records)), fd_(fd) {}

LossLog::LossLog(LossLog&& other) noexcept
    : path_(std::move(other.path_)),
      records_(std::move(other.records_)),
      fd_(std::exchange(other.fd_, -1)) {}

LossLog& LossLog::operator=(LossLog&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(records_, other.records_);
  std::swap(fd_, other.fd_);
  return *this;
}

LossLog::~LossLog() {
  if (fd_ >= 0) ::close(fd_);
}

Result<void> LossLog::append(const LossRecord& record) {
  RECUA_CHECK(records_.empty() || record.step > records_.back().step);
  records_.push_back(record);
  return write_all(fd_, path_, to_line(record));
}

}  // namespace recua::train
