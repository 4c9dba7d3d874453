#pragma once
/// Chunks: tensors cut into pieces of 4 MiB, each named by the SHA-256 of its bytes.
///
/// ChunkHasher computes the names of a file's chunks, in parallel, and remembers them with the
/// file's inode, size and time of change. ChunkStore keeps chunks that came over the network. Both
/// block (disk, hashing): call them through an Offload (cluster/offload.h), not from the loop.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "base/sha256.h"

namespace recua::cluster {

inline constexpr std::uint64_t kChunkBytes = std::uint64_t{4} << 20;

/// Chunks of a tensor of this size; the last one may be shorter.
constexpr std::uint64_t n_chunks(std::uint64_t tensor_bytes) {
  return tensor_bytes / kChunkBytes + (tensor_bytes % kChunkBytes != 0 ? 1 : 0);
}
/// Bytes of chunk i of a tensor.
constexpr std::uint64_t chunk_size(std::uint64_t tensor_bytes, std::uint64_t i) {
  const std::uint64_t begin = i * kChunkBytes;
  return tensor_bytes - begin < kChunkBytes ? tensor_bytes - begin : kChunkBytes;
}

/// Where recua keeps what it may lose: $XDG_CACHE_HOME/recua, else $HOME/.cache/recua, else a
/// folder under the system's temporary one.
std::filesystem::path default_cache_dir();

/// A tensor's bytes within a file.
struct FileRange {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

/// Bytes done and in all; called from several threads, one at a time.
using HashProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

class ChunkHasher {
 public:
  /// forget: compute again what is remembered (--verify). cancelled: hash() ends soon once it is
  /// true, and what it returns is then of no use.
  ChunkHasher(std::filesystem::path cache_dir, std::size_t n_threads, bool forget,
              const std::atomic<bool>* cancelled = nullptr)
      : cache_dir_(std::move(cache_dir)),
        n_threads_(n_threads),
        forget_(forget),
        cancelled_(cancelled) {}

  [[nodiscard]] bool cancelled() const { return cancelled_ != nullptr && *cancelled_; }

  /// The digests of each range's chunks, in order. Ranges lie within bytes, which are path's.
  [[nodiscard]] std::vector<std::vector<Digest>> hash(const std::filesystem::path& path,
                                                      std::span<const std::byte> bytes,
                                                      std::span<const FileRange> ranges,
                                                      const HashProgress& progress = {}) const;

 private:
  std::filesystem::path cache_dir_;
  std::size_t n_threads_;
  bool forget_;
  const std::atomic<bool>* cancelled_;
};

class ChunkStore {
 public:
  explicit ChunkStore(const std::filesystem::path& cache_dir) : dir_(cache_dir / "chunks") {}

  /// Reads a chunk into out, whose size is the chunk's. False when it is missing or damaged (a
  /// damaged one is removed).
  [[nodiscard]] bool load(const Digest& digest, std::span<std::byte> out) const;
  /// kIo: names the path.
  [[nodiscard]] Result<void> save(const Digest& digest, std::span<const std::byte> bytes) const;

 private:
  [[nodiscard]] std::filesystem::path path_of(const Digest& digest) const;

  std::filesystem::path dir_;
};

}  // namespace recua::cluster
