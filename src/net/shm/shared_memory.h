#pragma once
/// Memory that two processes of one host share: a memfd that one makes and the other opens through
/// /proc/PID/fd/N, so that nothing has a name, nothing stays behind and no socket passes
/// descriptors.
///
/// The memory is sealed against shrinking before anybody hears of it: a file that shrank under its
/// mapping would kill the other side with SIGBUS. An opener believes only what it sees: it opens
/// nothing but a sealed memfd of recua's, of exactly the size it was told. What is *in* the memory
/// may change at any moment at the peer's will: read it through std::atomic_ref or copy it out
/// before checking it.
///
/// Threads: any; the object has one owner. Move-only, unmapped and closed by the destructor.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/result.h"
#include "base/sha256.h"

namespace recua::net::shm {

/// What can be known of a descriptor that should be sealed shared memory.
struct SealedFile {
  std::uint64_t bytes = 0;
  std::uint64_t inode = 0;  // Tells one from another for as long as both live.
};

/// kProtocol: it is something else, and what.
Result<SealedFile> inspect_sealed(int fd);

class SharedMemory {
 public:
  /// Zeroed memory, mapped; from 2 MiB on with huge pages where the system gives them. All pages
  /// are there afterwards, so no later write can fail for want of memory. kResourceExhausted: says
  /// how much was asked for.
  static Result<SharedMemory> create(std::size_t bytes);
  /// Maps what process `pid` holds as its descriptor `fd`. Allocates nothing.
  /// kUnavailable: that process cannot be looked into, and what to do about it. kProtocol: the
  /// descriptor is not what the peer says it is.
  static Result<SharedMemory> open(std::int32_t pid, std::int32_t fd, std::uint64_t bytes);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept
      : bytes_(std::exchange(other.bytes_, {})),
        fd_(std::exchange(other.fd_, -1)),
        inode_(std::exchange(other.inode_, 0)) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
  /// For others to open while this object lives; -1 when it was opened itself.
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::uint64_t inode() const { return inode_; }

 private:
  SharedMemory(std::span<std::byte> bytes, int fd, std::uint64_t inode)
      : bytes_(bytes), fd_(fd), inode_(inode) {}

  std::span<std::byte> bytes_;
  int fd_ = -1;
  std::uint64_t inode_ = 0;
};

/// Equal in two processes only if each can open the other's descriptors: same boot of the same
/// machine, same pid and user namespaces, same user, same capabilities. (A security module may
/// still refuse: then open() says so.) kUnavailable: nobody could open this process's, and why.
Result<Digest> host_identity();

}  // namespace recua::net::shm
