#include "train/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string_view>
#include <system_error>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "train/checkpoint_format.h"

namespace recua::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kEnding = ".recua";
constexpr std::string_view kTemporary = ".tmp";

Error system_error(const fs::path& path, std::string_view what) {
  return {ErrorCode::kIo,
          fmt::format("{}: cannot {}: {}", path.string(), what, std::strerror(errno))};
}

// Digits enough for names to sort as their numbers.
fs::path file_name(std::uint64_t step) { return fmt::format("{}{:010}{}", kPrefix, step, kEnding); }

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }
  /// False: the last of what was written is lost; errno says why.
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

Result<void> write_all(const Descriptor& fd, const fs::path& path,
                       std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(path, "write");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return ok();
}

Result<void> write_synced(const fs::path& path, std::span<const std::byte> header,
                          const AdamState& state) {
  Descriptor fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (fd.get() < 0) return system_error(path, "create");
  RECUA_RETURN_IF_ERROR(write_all(fd, path, header));
  for (const std::span<const float> array : {state.params, state.m, state.v}) {
    RECUA_RETURN_IF_ERROR(write_all(fd, path, std::as_bytes(array)));
  }
  if (::fsync(fd.get()) != 0 || !fd.close()) return system_error(path, "write to the disk");
  return ok();
}

/// The first line that one has and the other has not, for a message.
std::string difference(std::string_view old_text, std::string_view new_text) {
  const auto next_line = [](std::string_view& text) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    return line;
  };
  while (!old_text.empty() || !new_text.empty()) {
    const std::string_view before = next_line(old_text);
    const std::string_view now = next_line(new_text);
    if (before != now) return fmt::format("it had {}, now it is {}", before, now);
  }
  return "they differ";
}

}  // namespace

Result<CheckpointFolder> CheckpointFolder::open(const fs::path& folder, std::size_t keep) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot create the folder: {}", folder.string(), error.message())};
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (name.starts_with(kPrefix) && name.ends_with(kTemporary)) fs::remove(entry.path(), ignored);
  }
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot read the folder: {}", folder.string(), error.message())};
  }
  return CheckpointFolder(folder, std::max<std::size_t>(1, keep));
}

Result<std::vector<fs::path>> CheckpointFolder::list() const {
  std::error_code error;
  std::vector<fs::path> out;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kEnding)) out.push_back(entry.path());
  }
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot read the folder: {}", folder_.string(), error.message())};
  }
  std::ranges::sort(out);
  return out;
}

Result<fs::path> CheckpointFolder::save(const RunPosition& run, const std::string& settings,
                                        const AdamState& state) const {
  const fs::path path = folder_ / file_name(run.step);
  const fs::path temporary = path.string() + std::string(kTemporary);
  if (auto written = write_synced(temporary, checkpoint_header(run, settings, state), state);
      !written.ok()) {
    ::unlink(temporary.c_str());
    return std::move(written).error();
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = system_error(temporary, fmt::format("become {}", path.string()));
    ::unlink(temporary.c_str());
    return error;
  }
  const Descriptor directory(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0 || ::fsync(directory.get()) != 0) return system_error(folder_, "sync");
  RECUA_ASSIGN_OR_RETURN(std::vector<fs::path> all, list());
  // Newer ones are damaged (load() went behind them): they count for nothing.
  std::erase_if(all, [&](const fs::path& other) { return other.filename() > path.filename(); });
  for (std::size_t i = 0; i + keep_ < all.size(); ++i) {
    if (::unlink(all[i].c_str()) != 0) return system_error(all[i], "remove");
  }
  return path;
}

Result<LoadedCheckpoint> CheckpointFolder::load(const std::string& settings,
                                                const AdamState& state) const {
  RECUA_ASSIGN_OR_RETURN(const std::vector<fs::path> all, list());
  if (all.empty()) {
    return Error{ErrorCode::kNotFound, fmt::format("{}: no checkpoint here", folder_.string())};
  }
  LoadedCheckpoint out;
  for (auto path = all.rbegin(); path != all.rend(); ++path) {
    const auto file = MappedFile::open(*path);
    auto header =
        file.ok() ? parse_checkpoint(file->bytes()) : Result<CheckpointHeader>(file.error());
    if (!header.ok()) {
      out.skipped.push_back(file.ok()
                                ? fmt::format("{}: {}", path->string(), header.error().message)
                                : header.error().message);
      continue;
    }
    if (header->settings != settings) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} was made by another run: {}", path->string(),
                               difference(header->settings, settings))};
    }
    if (header->n_params != state.params.size()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} has {} parameters, the model has {}", path->string(),
                               header->n_params, state.params.size())};
    }
    const std::byte* from = file->bytes().data() + header->header_bytes;
    for (const std::span<float> array : {state.params, state.m, state.v}) {
      std::memcpy(array.data(), from, array.size_bytes());
      from += array.size_bytes();
    }
    out.run = header->run;
    out.path = *path;
    return out;
  }
  std::string faults;
  for (const std::string& fault : out.skipped) faults += "\n  " + fault;
  return Error{ErrorCode::kCorrupt, fmt::format("{}: none of the {} checkpoints is whole:{}",
                                                folder_.string(), all.size(), faults)};
}

}  // namespace recua::train
