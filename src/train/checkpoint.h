#pragma once
/// Checkpoints of a training run: all that the next step depends on, in files of one folder.
///
/// A file takes its name only when it is complete and on the disk (write, fsync, rename, fsync of
/// the folder), so a run that dies or a disk that fills while one is written leaves those before.
/// Format: docs/checkpoints.md. Every byte is covered by a SHA-256; sizes are bounded before they
/// are believed.
/// Threads: one.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "train/optimizer.h"

namespace recua::train {

/// What a checkpoint holds besides the arrays.
struct RunPosition {
  std::uint64_t step = 0;      // Steps done.
  std::uint64_t position = 0;  // Examples visited: where Shuffle goes on.
  double best_loss = std::numeric_limits<double>::infinity();  // Of validation.
};

struct LoadedCheckpoint {
  RunPosition run;
  std::filesystem::path path;
  std::vector<std::string> skipped;  // What was wrong with newer ones, a sentence each.
};

class CheckpointFolder {
 public:
  /// Makes the folder if need be and removes what an interrupted save left. keep: how many
  /// checkpoints stay, at least 1. kIo: names the path.
  static Result<CheckpointFolder> open(const std::filesystem::path& folder, std::size_t keep);

  /// Complete checkpoints, oldest first.
  [[nodiscard]] Result<std::vector<std::filesystem::path>> list() const;

  /// Writes one, then removes all but the newest `keep`. settings: what the run was started with,
  /// a line "name=value" each; at most kSettingsBytesMax.
  /// kIo: cannot write (a full disk, say); the checkpoints before are as they were.
  Result<std::filesystem::path> save(const RunPosition& run, const std::string& settings,
                                     const AdamState& state) const;

  /// Reads the newest checkpoint that is whole into state, whose spans have the model's size.
  /// kNotFound: there is none at all. kCorrupt: none is whole; names each fault.
  /// kInvalidArgument: a whole one was made with other settings; names the first that differs.
  Result<LoadedCheckpoint> load(const std::string& settings, const AdamState& state) const;

  [[nodiscard]] const std::filesystem::path& path() const { return folder_; }

 private:
  CheckpointFolder(std::filesystem::path folder, std::size_t keep)
      : folder_(std::move(folder)), keep_(keep) {}
  std::filesystem::path folder_;
  std::size_t keep_;
};

inline constexpr std::size_t kSettingsBytesMax = 65536;

/// The fields of a checkpoint's header, read from the file's bytes and checked against their number
/// and digest. kCorrupt: says which field, what it is and what would be right.
struct CheckpointHeader {
  RunPosition run;
  std::uint64_t n_params = 0;
  std::string settings;
  std::size_t header_bytes = 0;  // Where the arrays begin: params, m, v.
};
Result<CheckpointHeader> parse_checkpoint(std::span<const std::byte> bytes);

}  // namespace recua::train
