// Who may look into whose /proc/PID/fd: proc(5), and ptrace(2), "Ptrace access mode checking"
// (PTRACE_MODE_READ_FSCREDS).
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <linux/capability.h>
#include <string>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/bytes.h"
#include "net/shm/shared_memory.h"

namespace recua::net::shm {
namespace {

Error unavailable(const std::string& why) {
  return Error{ErrorCode::kUnavailable, fmt::format("no shared memory with others: {}", why)};
}

}  // namespace

Result<Digest> host_identity() {
  std::string boot_id;
  if (!(std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id)) {
    return unavailable("/proc/sys/kernel/random/boot_id cannot be read; mount /proc");
  }
  // A /proc of another pid namespace knows us by another number than the one we would tell.
  std::array<char, 32> self{};
  const ssize_t n = ::readlink("/proc/self", self.data(), self.size());
  const std::string pid(self.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
  if (pid != std::to_string(::getpid())) {
    return unavailable(
        fmt::format("/proc knows this process as \"{}\", it is {}; mount the /proc "
                    "of its own pid namespace",
                    pid, ::getpid()));
  }
  struct stat pid_namespace{};
  struct stat user_namespace{};
  if (::stat("/proc/self/ns/pid", &pid_namespace) != 0 ||
      ::stat("/proc/self/ns/user", &user_namespace) != 0) {
    return unavailable(fmt::format("/proc/self/ns: {}", std::strerror(errno)));
  }
  // Set-uid programs and those with file capabilities hide their descriptors from their own user.
  if (::prctl(PR_GET_DUMPABLE) != 1) {
    return unavailable(
        "this process is not dumpable, so its own user may not look into it; run it without "
        "set-uid and file capabilities (setcap)");
  }
  // One may look into processes with no more capabilities than its own: so both have the same.
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> capabilities{};
  if (::syscall(SYS_capget, &header, capabilities.data()) != 0) {
    return unavailable(fmt::format("capget: {}", std::strerror(errno)));
  }
  ByteWriter bytes;
  bytes.write_bytes(as_bytes(boot_id));
  bytes.write(std::uint64_t{pid_namespace.st_dev});
  bytes.write(std::uint64_t{pid_namespace.st_ino});
  bytes.write(std::uint64_t{user_namespace.st_ino});
  bytes.write(std::uint32_t{::geteuid()});
  bytes.write(std::uint32_t{::getegid()});
  for (const auto& word : capabilities) {
    bytes.write(std::uint32_t{word.permitted});
    bytes.write(std::uint32_t{word.effective});
  }
  return sha256(bytes.bytes());
}

}  // namespace recua::net::shm
