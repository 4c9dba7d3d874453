#include "net/shm/shared_memory.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/magic.h>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <fmt/format.h>

namespace recua::net::shm {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20U;
constexpr const char* kName = "recua";
constexpr std::string_view kLinkPrefix = "/memfd:recua ";  // What /proc shows for it: " (deleted)".

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Error system_error(ErrorCode code, std::string_view what, int error) {
  return Error{code, fmt::format("{}: {}", what, std::strerror(error))};
}

Error no_memory(std::size_t bytes, int error) {
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("cannot get {} bytes ({:.1f} MiB) of shared memory: {}", bytes,
                           static_cast<double>(bytes) / (1 << 20), std::strerror(error))};
}

/// What a descriptor of ours leads to, as /proc tells it; empty when it does not.
std::string link_of(int fd) {
  std::array<char, 256> text{};
  const ssize_t n =
      ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), text.data(), text.size());
  return n < 0 ? std::string() : std::string(text.data(), static_cast<std::size_t>(n));
}

Result<std::span<std::byte>> map(int fd, std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    // Sealed against writing, which no honest peer does: we need to write counters and messages.
    if (errno == EPERM) {
      return system_error(ErrorCode::kProtocol, "shared memory cannot be mapped for writing",
                          errno);
    }
    return no_memory(bytes, errno);
  }
  // A hint only: a kernel that shares no huge pages refuses and nothing is lost.
  if (bytes >= kHugePage) (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  return std::span(static_cast<std::byte*>(memory), bytes);
}

/// Has every page there now. Without it, a page that is first touched when memory has run out kills
/// the process (strict overcommit answers a fault with SIGBUS).
Result<void> populate(int fd, std::span<std::byte> memory) {
  if (::madvise(memory.data(), memory.size(), MADV_POPULATE_WRITE) == 0) return ok();
  if (errno != EINVAL) return no_memory(memory.size(), errno);
  // Before Linux 5.14: the same without huge pages.
  if (::fallocate(fd, 0, 0, static_cast<off_t>(memory.size())) == 0) return ok();
  return no_memory(memory.size(), errno);
}

Error cannot_open(std::int32_t pid, std::int32_t fd, int error) {
  std::string remedy;
  if (error == EACCES || error == EPERM) {
    remedy =
        "run both processes as the same user, without set-uid or file capabilities (setcap), or "
        "allow it in the security module";
  } else if (::access(fmt::format("/proc/{}", pid).c_str(), F_OK) != 0) {
    remedy =
        "that process is not to be seen here: it ended, runs in another container, or /proc is "
        "mounted with hidepid";
  } else {
    remedy = "that process has no such descriptor";
  }
  return Error{ErrorCode::kUnavailable,
               fmt::format("cannot open shared memory /proc/{}/fd/{}: {}; {}", pid, fd,
                           std::strerror(error), remedy)};
}

}  // namespace

Result<SealedFile> inspect_sealed(int fd) {
  const auto refuse = [](const std::string& why) {
    return Error{ErrorCode::kProtocol, fmt::format("no shared memory of recua: {}", why)};
  };
  struct stat status{};
  struct statfs system{};
  if (::fstat(fd, &status) != 0 || ::fstatfs(fd, &system) != 0) {
    return refuse(std::strerror(errno));
  }
  // Huge pages of hugetlbfs may be taken away under a mapping, which then faults with SIGBUS.
  if (!S_ISREG(status.st_mode) || system.f_type != TMPFS_MAGIC) return refuse("it is no memfd");
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return refuse("it is no memfd");
  if ((static_cast<unsigned>(seals) & F_SEAL_SHRINK) == 0) {
    return refuse("it is not sealed against shrinking (F_SEAL_SHRINK)");
  }
  return SealedFile{.bytes = static_cast<std::uint64_t>(status.st_size), .inode = status.st_ino};
}

Result<SharedMemory> SharedMemory::create(std::size_t bytes) {
  if (bytes == 0) {
    return Error{ErrorCode::kInvalidArgument, "0 bytes of shared memory: at least 1 is needed"};
  }
  Descriptor fd(::memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return system_error(ErrorCode::kUnavailable, "memfd_create", errno);
  if (bytes > static_cast<std::size_t>(PTRDIFF_MAX)) return no_memory(bytes, ENOMEM);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return no_memory(bytes, errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return system_error(ErrorCode::kUnavailable, "sealing shared memory", errno);
  }
  RECUA_ASSIGN_OR_RETURN(const SealedFile file, inspect_sealed(fd.get()));
  RECUA_ASSIGN_OR_RETURN(const std::span<std::byte> memory, map(fd.get(), bytes));
  SharedMemory out(memory, fd.release(), file.inode);
  RECUA_RETURN_IF_ERROR(populate(out.fd_, memory));
  return out;
}

Result<SharedMemory> SharedMemory::open(std::int32_t pid, std::int32_t fd, std::uint64_t bytes) {
  if (pid <= 0 || fd < 0) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("shared memory of process {}, descriptor {}: there are no such "
                             "numbers",
                             pid, fd)};
  }
  // The peer chose the numbers, so first only a handle on whatever that is: a terminal, a device or
  // a queue must not be opened for real. Only what looks like ours is, through that handle.
  const Descriptor handle(
      ::open(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), O_PATH | O_CLOEXEC));
  if (handle.get() < 0) return cannot_open(pid, fd, errno);
  const std::string link = link_of(handle.get());
  const auto named = [&](Error error) {
    return std::move(error).within(fmt::format("/proc/{}/fd/{} ({})", pid, fd, link));
  };
  if (!std::string_view(link).starts_with(kLinkPrefix)) {
    return named({ErrorCode::kProtocol, "no shared memory of recua: it has another name"});
  }
  const Descriptor file(::open(fmt::format("/proc/self/fd/{}", handle.get()).c_str(),
                               O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return cannot_open(pid, fd, errno);
  auto found = inspect_sealed(file.get());
  if (!found.ok()) return named(std::move(found).error());
  if (found->bytes != bytes || bytes == 0) {
    return named(
        {ErrorCode::kProtocol,
         fmt::format("has {} bytes of shared memory, the peer said {}", found->bytes, bytes)});
  }
  auto memory = map(file.get(), static_cast<std::size_t>(bytes));
  if (!memory.ok()) return named(std::move(memory).error());
  return SharedMemory(*memory, -1, found->inode);  // The mapping needs no descriptor.
}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(fd_, other.fd_);
  std::swap(inode_, other.inode_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace recua::net::shm
