#pragma once
/// A whole file mapped read-only. The pages come from the disk when they are touched.
///
/// Move-only; the mapping lives as long as the object. Threads: any, the bytes never change through
/// us. If somebody truncates the file while it is mapped, touching the lost pages raises SIGBUS.

#include <cstddef>
#include <filesystem>
#include <span>

#include "base/result.h"

namespace recua {

class MappedFile {
 public:
  /// kNotFound, kIo: names the path. An empty file maps to an empty span.
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, std::size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Takes the pages of a mapped file's bytes out of this process's memory; whoever reads them again
/// gets them from the file. Only for bytes of a MappedFile: other memory would lose what it holds.
void drop_mapped_pages(std::span<const std::byte> bytes);

/// Reads a whole file into a string. kNotFound, kIo, kResourceExhausted (larger than bytes_max).
Result<std::string> read_file(const std::filesystem::path& path, std::size_t bytes_max);

/// Whether a written file must survive the loss of power (fsync), or may be lost and made again.
enum class Durability { kSynced, kMayBeLost };

/// Writes bytes to path by way of a temporary file beside it and rename: a reader sees the old file
/// or the new one, never half of it.
Result<void> write_file_atomically(const std::filesystem::path& path,
                                   std::span<const std::byte> bytes,
                                   Durability durability = Durability::kSynced);

}  // namespace recua
