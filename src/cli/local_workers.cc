#include "cli/local_workers.h"

#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

namespace recua::cli {
namespace {

constexpr auto kStartTimeout = std::chrono::seconds(30);
constexpr auto kStopTimeout = std::chrono::seconds(2);

struct Child {
  pid_t pid = -1;
  int address_fd = -1;  // The worker writes where it listens.
};

Error system_error(const char* what) {
  return Error{ErrorCode::kIo,
               fmt::format("--local-workers: cannot {}: {}", what, std::strerror(errno))};
}

Result<Child> spawn(const std::filesystem::path& models_dir, std::uint32_t n_threads,
                    const std::vector<std::string>& more) {
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return system_error("make a pipe");
  const std::string threads = std::to_string(n_threads);
  const std::string models = models_dir.empty() ? "." : models_dir.string();
  const std::string port_file = fmt::format("/dev/fd/{}", pipe_fds[1]);
  // Everything the child needs is made before the fork: after it only plain system calls are safe.
  std::vector<const char*> arguments = {
      "recua",     "worker",        "--listen",    "127.0.0.1:0",     "--models", models.c_str(),
      "--threads", threads.c_str(), "--port-file", port_file.c_str(), "--quiet"};
  for (const std::string& argument : more) arguments.push_back(argument.c_str());
  arguments.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    ::close(pipe_fds[0]);
    ::close(pipe_fds[1]);
    return system_error("start a process");
  }
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // However the parent ends, the worker does not stay.
    if (::getppid() != parent) ::_exit(1);
    ::setpgid(0, 0);  // Ctrl-C goes to the command, which then ends its workers itself.
    ::fcntl(pipe_fds[1], F_SETFD, 0);
    ::execv("/proc/self/exe", const_cast<char* const*>(arguments.data()));
    ::_exit(127);
  }
  ::close(pipe_fds[1]);
  return Child{.pid = pid, .address_fd = pipe_fds[0]};
}

Result<net::Endpoint> read_address(int fd) {
  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  while (text.find('\n') == std::string::npos) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return Error{ErrorCode::kTimeout, "--local-workers: a worker did not start within 30 s"};
    }
    pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&wait, 1, static_cast<int>(left.count())) < 0 && errno != EINTR) {
      return system_error("wait for a worker");
    }
    if (wait.revents == 0) continue;
    char block[256];
    const ssize_t n = ::read(fd, block, sizeof block);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return Error{ErrorCode::kUnavailable,
                   "--local-workers: a worker ended before it listened; `recua worker` shows why"};
    }
    text.append(block, static_cast<std::size_t>(n));
  }
  return net::Endpoint::parse(std::string_view(text).substr(0, text.find('\n')), 0);
}

}  // namespace

Result<LocalWorkers> LocalWorkers::start(std::uint32_t n, const std::filesystem::path& models_dir,
                                         std::uint32_t n_threads,
                                         const std::vector<std::string>& arguments) {
  LocalWorkers workers;
  std::vector<int> fds;
  Result<void> result = ok();
  for (std::uint32_t i = 0; i < n && result.ok(); ++i) {
    Result<Child> child = spawn(models_dir, n_threads, arguments);
    if (!child.ok()) {
      result = Error(child.error());
      break;
    }
    workers.processes_.push_back(child->pid);
    fds.push_back(child->address_fd);
  }
  for (const int fd : fds) {
    if (result.ok()) {
      Result<net::Endpoint> endpoint = read_address(fd);
      if (endpoint.ok()) {
        workers.endpoints_.push_back(std::move(*endpoint));
      } else {
        result = Error(endpoint.error());
      }
    }
    ::close(fd);
  }
  if (!result.ok()) return Error(result.error());
  return workers;
}

LocalWorkers::LocalWorkers(LocalWorkers&& other) noexcept
    : processes_(std::exchange(other.processes_, {})),
      endpoints_(std::exchange(other.endpoints_, {})) {}

LocalWorkers& LocalWorkers::operator=(LocalWorkers&& other) noexcept {
  std::swap(processes_, other.processes_);
  std::swap(endpoints_, other.endpoints_);
  return *this;
}

LocalWorkers::~LocalWorkers() { stop(); }

void LocalWorkers::stop() {
  for (const pid_t pid : processes_) ::kill(pid, SIGTERM);
  const auto deadline = std::chrono::steady_clock::now() + kStopTimeout;
  for (const pid_t pid : processes_) {
    // There is no wait with a deadline for one child; a few looks a millisecond apart will do.
    while (::waitpid(pid, nullptr, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  processes_.clear();
}

}  // namespace recua::cli
