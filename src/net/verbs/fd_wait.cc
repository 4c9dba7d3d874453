#include "net/verbs/fd_wait.h"

#include <mutex>
#include <utility>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>

namespace recua::net::verbs {

/// A descriptor registered with one executor's loop.
struct FdWait::Wait {
  explicit Wait(const asio::any_io_executor& e) : executor(e), descriptor(e) {}

  ReadyCallback take() {
    const std::scoped_lock lock(mutex);
    waits = false;
    return std::exchange(ready, {});
  }

  asio::any_io_executor executor;
  std::mutex mutex;  // A handler may run in another thread's loop while its wait is given up.
  asio::posix::stream_descriptor descriptor;
  ReadyCallback ready;
  bool waits = false;
};

FdWait::FdWait(int fd) : fd_(fd) {}

FdWait::~FdWait() { give_up(); }

void FdWait::give_up() {
  if (!wait_) return;
  const std::shared_ptr<Wait> wait = std::move(wait_);
  wait_.reset();
  ReadyCallback dropped;  // Destroyed outside of the lock: it may own anything.
  const std::scoped_lock lock(wait->mutex);
  dropped = std::exchange(wait->ready, {});
  // Cancels what is pending. Without release() the descriptor would be closed, which is not ours.
  if (wait->descriptor.is_open()) wait->descriptor.release();
}

void FdWait::arm(const asio::any_io_executor& executor, ReadyCallback ready) {
  if (wait_ && wait_->executor != executor) give_up();
  if (!wait_) {
    auto wait = std::make_shared<Wait>(executor);
    boost::system::error_code error;
    wait->descriptor.assign(fd_, error);
    if (error) {
      asio::post(executor, std::move(ready));
      return;
    }
    wait_ = std::move(wait);
  }
  const std::scoped_lock lock(wait_->mutex);
  std::swap(wait_->ready, ready);
  if (std::exchange(wait_->waits, true)) return;  // The wait under way calls the newest callback.
  wait_->descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                               [wait = wait_](boost::system::error_code) {
                                 // After give_up() there is no callback any more.
                                 if (const ReadyCallback call = wait->take()) call();
                               });
}

}  // namespace recua::net::verbs
