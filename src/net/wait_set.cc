#include "net/wait_set.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <utility>

namespace recua::net {

namespace {

itimerspec once_after(Duration duration) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(duration);
  itimerspec out{};
  out.it_value.tv_sec = seconds.count();
  out.it_value.tv_nsec = std::chrono::nanoseconds(duration - seconds).count();
  return out;
}

void close_if_open(int fd) {
  if (fd >= 0) ::close(fd);
}

}  // namespace

/// The set itself and its timer, which is the one without a handle.
struct WaitSet::Epoll {
  Epoll()
      : fd(::epoll_create1(EPOLL_CLOEXEC)),
        timer(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
    epoll_event event{};
    event.events = EPOLLIN;
    works = fd >= 0 && timer >= 0 && ::epoll_ctl(fd, EPOLL_CTL_ADD, timer, &event) == 0;
  }
  ~Epoll() {
    close_if_open(timer);
    close_if_open(fd);
  }
  Epoll(const Epoll&) = delete;
  Epoll& operator=(const Epoll&) = delete;

  int fd;
  int timer;
  bool works;
};

WaitSet::WaitSet() : epoll_(std::make_shared<Epoll>()) {}
WaitSet::~WaitSet() = default;

bool WaitSet::start_timer() {
  const itimerspec when = once_after(kDirectWait);  // Takes an earlier expiry away as well.
  timer_runs_ = ::timerfd_settime(epoll_->timer, 0, &when, nullptr) == 0;
  return timer_runs_;
}

bool WaitSet::wait() {
  const bool inherited = timer_runs_;
  if (!inherited && !start_timer()) return false;
  if (take_events(-1)) return true;
  // What ran out may have been an earlier wait's time: this one gets its own.
  return inherited && start_timer() && take_events(-1);
}

bool WaitSet::look() { return take_events(0); }

bool WaitSet::take_events(int timeout_ms) {
  std::array<epoll_event, 8> events;  // Filled by the kernel as far as we read it.
  const int n =
      ::epoll_wait(epoll_->fd, events.data(), static_cast<int>(events.size()), timeout_ms);
  // A signal, or a set that could not be made: whoever polls finds out what to do.
  if (n < 0) return errno == EINTR;
  bool any = false;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    auto* const handle = static_cast<WaitHandle*>(events[i].data.ptr);
    if (handle == nullptr) {
      timer_runs_ = false;
    } else {
      handle->noted_ = true;
      any = true;
    }
  }
  return any;
}

WaitHandle::WaitHandle(int fd) : fd_(fd) {}
WaitHandle::~WaitHandle() { leave(); }

void WaitHandle::leave() {
  if (epoll_ == nullptr) return;
  epoll_event unused{};
  ::epoll_ctl(epoll_->fd, EPOLL_CTL_DEL, fd_, &unused);
  epoll_.reset();
}

bool WaitHandle::join(const WaitSet& set) {
  if (epoll_ == set.epoll_) return true;
  leave();
  if (fd_ < 0 || !set.epoll_->works) return false;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = this;
  if (::epoll_ctl(set.epoll_->fd, EPOLL_CTL_ADD, fd_, &event) != 0) return false;
  epoll_ = set.epoll_;
  return true;
}

bool WaitHandle::take() { return std::exchange(noted_, false); }

}  // namespace recua::net
