// The signal handler writes one byte into a pipe that the loop reads: the only thing it may do
// safely.

#include "cli/interrupt.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include "cli/commands.h"

namespace recua::cli {
namespace {

// A signal handler can reach nothing but these.
std::atomic<int> g_write_end{-1};
std::atomic<int> g_n_signals{0};

void on_signal(int) {
  if (g_n_signals.fetch_add(1) > 0) ::_exit(kExitInterrupted);
  const int saved_errno = errno;
  const char byte = 0;
  const int fd = g_write_end.load();
  if (fd >= 0) [[maybe_unused]]
    const ssize_t ignored = ::write(fd, &byte, 1);
  errno = saved_errno;
}

}  // namespace

struct Interrupt::Pipe {
  explicit Pipe(boost::asio::io_context& loop) : read_end(loop) {}

  boost::asio::posix::stream_descriptor read_end;
  std::array<char, 1> byte{};
};

Interrupt::Interrupt(boost::asio::io_context& loop, std::function<void()> handler)
    : pipe_(std::make_shared<Pipe>(loop)) {
  g_n_signals = 0;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) return;  // Then Ctrl-C ends the process.
  pipe_->read_end.assign(ends[0]);
  g_write_end = ends[1];
  auto pipe = pipe_;
  pipe_->read_end.async_read_some(
      boost::asio::buffer(pipe_->byte),
      [pipe, on_interrupt = std::move(handler)](boost::system::error_code error, std::size_t) {
        if (!error) on_interrupt();
      });
  struct sigaction action{};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

Interrupt::~Interrupt() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  const int fd = g_write_end.exchange(-1);
  if (fd >= 0) ::close(fd);
  boost::system::error_code ignored;
  pipe_->read_end.close(ignored);
}

bool Interrupt::happened() const { return g_n_signals.load() > 0; }

}  // namespace recua::cli
