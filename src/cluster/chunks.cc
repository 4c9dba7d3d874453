#include "cluster/chunks.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/stat.h>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"

namespace recua::cluster {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMemoMagic = 0x314d454d41435552ULL;  // "RUCAMEM1"
constexpr std::size_t kMemoBytesMax = std::size_t{256} << 20;

/// What identifies the state of a file.
struct FileState {
  std::uint64_t inode = 0;
  std::uint64_t bytes = 0;
  std::int64_t changed_ns = 0;

  friend bool operator==(const FileState&, const FileState&) = default;
};

FileState state_of(const fs::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return {};
  return {.inode = info.st_ino,
          .bytes = static_cast<std::uint64_t>(info.st_size),
          .changed_ns = info.st_mtim.tv_sec * std::int64_t{1'000'000'000} + info.st_mtim.tv_nsec};
}

/// Remembered digests by (offset, bytes) of the chunk.
using Memo = std::map<std::pair<std::uint64_t, std::uint64_t>, Digest>;

fs::path memo_path(const fs::path& cache_dir, const fs::path& file) {
  std::error_code error;
  fs::path canonical = fs::canonical(file, error);
  if (error) canonical = file;
  return cache_dir / "hashes" / to_hex(sha256(as_bytes(canonical.string()))).substr(0, 32);
}

Memo read_memo(const fs::path& path, const FileState& state) {
  const Result<std::string> text = read_file(path, kMemoBytesMax);
  if (!text.ok()) return {};
  ByteReader reader(as_bytes(*text));
  const FileState found{.inode = (reader.read<std::uint64_t>() == kMemoMagic)
                                     ? reader.read<std::uint64_t>().value_or(0)
                                     : 0,
                        .bytes = reader.read<std::uint64_t>().value_or(0),
                        .changed_ns = reader.read<std::int64_t>().value_or(0)};
  if (!(found == state)) return {};
  Memo memo;
  while (reader.remaining() >= 16 + sizeof(Digest)) {
    const std::uint64_t offset = *reader.read<std::uint64_t>();
    const std::uint64_t bytes = *reader.read<std::uint64_t>();
    Digest digest{};
    std::memcpy(digest.data(), reader.take(sizeof(Digest))->data(), sizeof(Digest));
    memo[{offset, bytes}] = digest;
  }
  return memo;
}

void write_memo(const fs::path& path, const FileState& state, const Memo& memo) {
  ByteWriter out;
  out.write(kMemoMagic);
  out.write(state.inode);
  out.write(state.bytes);
  out.write(state.changed_ns);
  for (const auto& [range, digest] : memo) {
    out.write(range.first);
    out.write(range.second);
    out.write_bytes(digest);
  }
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (const auto written = write_file_atomically(path, out.bytes(), Durability::kMayBeLost);
      !written.ok()) {
    log_debug("hashes are not remembered: {}", written.error().message);
  }
}

}  // namespace

fs::path default_cache_dir() {
  if (const char* dir = std::getenv("XDG_CACHE_HOME"); dir != nullptr && *dir != '\0') {
    return fs::path(dir) / "recua";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    return fs::path(home) / ".cache" / "recua";
  }
  std::error_code error;
  return fs::temp_directory_path(error) / "recua-cache";
}

std::vector<std::vector<Digest>> ChunkHasher::hash(const fs::path& path,
                                                   std::span<const std::byte> bytes,
                                                   std::span<const FileRange> ranges,
                                                   const HashProgress& progress) const {
  struct Job {
    std::uint64_t offset, bytes;
    Digest* out;
  };
  const FileState state = state_of(path);
  const fs::path memo_file = memo_path(cache_dir_, path);
  Memo memo = forget_ ? Memo{} : read_memo(memo_file, state);

  std::vector<std::vector<Digest>> digests(ranges.size());
  std::vector<Job> jobs;
  std::uint64_t total = 0;
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    digests[r].resize(n_chunks(ranges[r].bytes));
    for (std::uint64_t i = 0; i < digests[r].size(); ++i) {
      const Job job{ranges[r].offset + i * kChunkBytes, chunk_size(ranges[r].bytes, i),
                    &digests[r][i]};
      if (const auto known = memo.find({job.offset, job.bytes}); known != memo.end()) {
        *job.out = known->second;
      } else {
        jobs.push_back(job);
        total += job.bytes;
      }
    }
  }
  if (jobs.empty()) return digests;

  std::atomic<std::size_t> next{0};
  std::mutex progress_mutex;
  std::uint64_t done = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < jobs.size() && !cancelled(); i = next++) {
      *jobs[i].out = sha256(bytes.subspan(jobs[i].offset, jobs[i].bytes));
      if (progress) {
        const std::scoped_lock lock(progress_mutex);
        done += jobs[i].bytes;
        progress(done, total);
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < std::min(n_threads_, jobs.size()); ++i) helpers.emplace_back(work);
    work();
  }
  if (cancelled()) return digests;
  for (const Job& job : jobs) memo[{job.offset, job.bytes}] = *job.out;
  write_memo(memo_file, state, memo);
  return digests;
}

fs::path ChunkStore::path_of(const Digest& digest) const {
  const std::string name = to_hex(digest);
  return dir_ / name.substr(0, 2) / name;
}

bool ChunkStore::load(const Digest& digest, std::span<std::byte> out) const {
  const fs::path path = path_of(digest);
  const Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return false;
  if (file->bytes().size() != out.size() || sha256(file->bytes()) != digest) {
    log_warning("{}: damaged chunk removed from the cache", path.string());
    std::error_code error;
    fs::remove(path, error);
    return false;
  }
  std::memcpy(out.data(), file->bytes().data(), out.size());
  return true;
}

Result<void> ChunkStore::save(const Digest& digest, std::span<const std::byte> bytes) const {
  const fs::path path = path_of(digest);
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) {
    return Error{ErrorCode::kIo, fmt::format("{}: cannot create the cache folder: {}",
                                             path.parent_path().string(), error.message())};
  }
  return write_file_atomically(path, bytes, Durability::kMayBeLost);  // load() checks the hash.
}

}  // namespace recua::cluster
