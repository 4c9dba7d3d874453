#include "net/shm/shared_memory.h"

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/scratch_folder.h"

namespace recua::net::shm {
namespace {

constexpr std::size_t kBytes = 10000;

/// Runs f in a process of its own and returns its exit code, 0 for true.
int in_child(const std::function<bool()>& f) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(f() ? 0 : 1);
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// A memfd as a careless or hostile peer could make it.
int make_memfd(const char* name, int seals, std::size_t bytes = kBytes, unsigned flags = 0) {
  const int fd = ::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(::ftruncate(fd, static_cast<off_t>(bytes)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(fd, F_ADD_SEALS, seals), 0);
  }
  return fd;
}

/// What open() says to a descriptor of ours, without its place in front.
std::string refusal(int fd, std::uint64_t bytes = kBytes, ErrorCode code = ErrorCode::kProtocol) {
  const auto result = SharedMemory::open(::getpid(), fd, bytes);
  if (result.ok()) return "accepted";
  EXPECT_EQ(result.error().code, code) << result.error().message;
  const std::string& message = result.error().message;
  const std::size_t end = message.find("): ");
  return end == std::string::npos ? message : message.substr(end + 3);
}

TEST(SharedMemory, IsZeroedSealedAndNotInherited) {
  const auto memory = SharedMemory::create(kBytes).value();
  ASSERT_EQ(memory.bytes().size(), kBytes);
  for (const std::byte b : memory.bytes()) ASSERT_EQ(b, std::byte{0});
  EXPECT_EQ(::fcntl(memory.fd(), F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(::fcntl(memory.fd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_NE(::ftruncate(memory.fd(), 0), 0);
  EXPECT_NE(::ftruncate(memory.fd(), kBytes * 2), 0);
}

TEST(SharedMemory, HasAllItsPagesAtOnce) {
  const std::size_t bytes = std::size_t{3} << 20U;
  const auto memory = SharedMemory::create(bytes).value();
  struct stat status{};
  ASSERT_EQ(::fstat(memory.fd(), &status), 0);
  EXPECT_GE(static_cast<std::size_t>(status.st_blocks) * 512, bytes);
}

TEST(SharedMemory, RefusesToBeEmptyOrLargerThanMemory) {
  EXPECT_EQ(SharedMemory::create(0).error().code, ErrorCode::kInvalidArgument);
  const auto huge = SharedMemory::create(SIZE_MAX);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.error().code, ErrorCode::kResourceExhausted);
}

TEST(SharedMemory, IsTheSameInTwoProcesses) {
  const auto memory = SharedMemory::create(kBytes).value();
  std::memcpy(memory.bytes().data(), "there", 6);
  const pid_t parent = ::getpid();
  EXPECT_EQ(in_child([&] {
              const auto opened = SharedMemory::open(parent, memory.fd(), kBytes);
              if (!opened.ok() || opened->inode() != memory.inode()) return false;
              if (std::strcmp(reinterpret_cast<char*>(opened->bytes().data()), "there") != 0) {
                return false;
              }
              std::memcpy(opened->bytes().data() + kBytes - 5, "back", 5);
              return true;
            }),
            0);
  EXPECT_STREQ(reinterpret_cast<char*>(memory.bytes().data() + kBytes - 5), "back");
}

TEST(SharedMemory, MovesWithItsMapping) {
  auto memory = SharedMemory::create(kBytes).value();
  std::byte* const where = memory.bytes().data();
  SharedMemory other = std::move(memory);
  SharedMemory third;
  third = std::move(other);
  EXPECT_EQ(third.bytes().data(), where);
  EXPECT_GE(third.fd(), 0);
}

TEST(SharedMemory, OpensNothingThatCouldShrink) {
  const int unsealed = make_memfd("recua", 0);
  EXPECT_EQ(refusal(unsealed),
            "no shared memory of recua: it is not sealed against shrinking (F_SEAL_SHRINK)");
  const int grown = make_memfd("recua", F_SEAL_GROW);
  EXPECT_EQ(refusal(grown),
            "no shared memory of recua: it is not sealed against shrinking (F_SEAL_SHRINK)");
  const int sealed = make_memfd("recua", F_SEAL_SHRINK);
  EXPECT_EQ(refusal(sealed), "accepted");
  for (const int fd : {unsealed, grown, sealed}) ::close(fd);
}

TEST(SharedMemory, OpensNothingThatCannotBeWritten) {
  const int fd = make_memfd("recua", F_SEAL_SHRINK | F_SEAL_WRITE);
  EXPECT_EQ(refusal(fd), "shared memory cannot be mapped for writing: Operation not permitted");
  ::close(fd);
}

TEST(SharedMemory, OpensNothingOfAnotherSize) {
  const auto memory = SharedMemory::create(kBytes).value();
  EXPECT_EQ(refusal(memory.fd(), kBytes + 1),
            "has 10000 bytes of shared memory, the peer said 10001");
  EXPECT_EQ(refusal(memory.fd(), 0), "has 10000 bytes of shared memory, the peer said 0");
}

TEST(SharedMemory, OpensNoHugePagesThatCouldBeTakenAway) {
  const int fd = ::memfd_create("recua", MFD_ALLOW_SEALING | MFD_HUGETLB);
  if (fd < 0) GTEST_SKIP() << "this kernel has no hugetlbfs";
  ASSERT_EQ(::ftruncate(fd, 2 << 20), 0);
  ASSERT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(refusal(fd, 2 << 20), "no shared memory of recua: it is no memfd");
  ::close(fd);
}

TEST(SharedMemory, OpensNoDescriptorOfAnythingElse) {
  const std::string other_name = "no shared memory of recua: it has another name";
  const ScratchFolder folder;
  const int file = ::open((folder / "recua").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::ftruncate(file, kBytes), 0);
  EXPECT_EQ(refusal(file), other_name);
  const int foreign = make_memfd("somebody", F_SEAL_SHRINK);
  EXPECT_EQ(refusal(foreign), other_name);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  EXPECT_EQ(refusal(ends[0]), other_name);
  for (const int fd : {file, foreign, ends[0], ends[1]}) ::close(fd);
}

TEST(SharedMemory, ChecksMoreThanTheName) {
  const ScratchFolder folder;
  const int file = ::open((folder / "file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  EXPECT_EQ(inspect_sealed(file).error().message, "no shared memory of recua: it is no memfd");
  ::close(file);
  EXPECT_EQ(inspect_sealed(-1).error().message, "no shared memory of recua: Bad file descriptor");
}

TEST(SharedMemory, SaysWhatToDoWhenTheOtherProcessCannotBeLookedInto) {
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, nullptr, 0), gone);
  const auto ended = SharedMemory::open(gone, 3, kBytes);
  ASSERT_FALSE(ended.ok());
  EXPECT_EQ(ended.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(ended.error().message,
            fmt::format("cannot open shared memory /proc/{}/fd/3: No such file or directory; that "
                        "process is not to be seen here: it ended, runs in another container, or "
                        "/proc is mounted with hidepid",
                        gone));
  const auto closed = SharedMemory::open(::getpid(), 999'999, kBytes);
  ASSERT_FALSE(closed.ok());
  EXPECT_EQ(closed.error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(closed.error().message.ends_with("that process has no such descriptor"))
      << closed.error().message;
  EXPECT_EQ(SharedMemory::open(0, 3, kBytes).error().code, ErrorCode::kProtocol);
  EXPECT_EQ(SharedMemory::open(1, -1, kBytes).error().code, ErrorCode::kProtocol);
}

TEST(SharedMemory, SaysWhatToDoWhenTheOtherProcessIsAnotherUsers) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  const auto memory = SharedMemory::create(kBytes).value();
  const pid_t parent = ::getpid();
  EXPECT_EQ(in_child([&] {
              if (::setgid(65534) != 0 || ::setuid(65534) != 0) return false;
              const auto opened = SharedMemory::open(parent, memory.fd(), kBytes);
              return !opened.ok() && opened.error().code == ErrorCode::kUnavailable &&
                     opened.error().message.find("run both processes as the same user") !=
                         std::string::npos;
            }),
            0);
}

TEST(HostIdentity, IsThatOfOtherProcessesOfThisUser) {
  const Digest ours = host_identity().value();
  EXPECT_EQ(in_child([&] { return host_identity().value() == ours; }), 0);
}

TEST(HostIdentity, DiffersForAnotherUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  const Digest ours = host_identity().value();
  EXPECT_EQ(in_child([&] {
              if (::setuid(65534) != 0 || ::prctl(PR_SET_DUMPABLE, 1) != 0) return false;
              const auto theirs = host_identity();
              return theirs.ok() && *theirs != ours;
            }),
            0);
}

TEST(HostIdentity, IsNotGivenToAProcessThatHidesItsDescriptors) {
  EXPECT_EQ(in_child([] {
              if (::prctl(PR_SET_DUMPABLE, 0) != 0) return false;
              const auto identity = host_identity();
              return !identity.ok() && identity.error().code == ErrorCode::kUnavailable;
            }),
            0);
}

TEST(HostIdentity, IsNotGivenWhereProcIsOfAnotherNamespace) {
  if (::geteuid() != 0) GTEST_SKIP() << "a pid namespace needs root";
  EXPECT_EQ(in_child([] {
              if (::unshare(CLONE_NEWPID) != 0) return false;
              return in_child([] {
                       const auto identity = host_identity();
                       return !identity.ok() && identity.error().code == ErrorCode::kUnavailable;
                     }) == 0;
            }),
            0);
}

}  // namespace
}  // namespace recua::net::shm
