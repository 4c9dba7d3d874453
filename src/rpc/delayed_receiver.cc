#include "rpc/delayed_receiver.h"

#include <deque>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "net/deadline.h"

namespace recua::rpc {
namespace {

class DelayedReceiver final : public ChannelReceiver {
 public:
  DelayedReceiver(std::unique_ptr<ChannelReceiver> receiver, net::Env env, net::Duration delay)
      : receiver_(std::move(receiver)), env_(std::move(env)), delay_(delay) {}

  [[nodiscard]] const std::string& peer() const override { return receiver_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return receiver_->ring(); }
  [[nodiscard]] std::string transport() const override {
    return fmt::format("{}, delayed by {}", receiver_->transport(), net::to_string(delay_));
  }
  [[nodiscard]] const ChannelCounters& counters() const override { return receiver_->counters(); }

  Result<const Incoming*> poll() override {
    const net::TimePoint now = env_.clock->now();
    const bool was_idle = waiting_.empty() && !failure_;
    while (!failure_) {
      Result<const Incoming*> came = receiver_->poll();
      if (!came.ok()) {
        failure_ = std::move(came).error();  // What came before it is handed out first.
        failed_at_ = now;
      } else if (*came != nullptr) {
        waiting_.push_back({.message = *came, .due = now + delay_});
      } else {
        break;
      }
    }
    // What was taken in now will not wake who has armed before this poll.
    if (was_idle && ready_) wake_when_due();
    if (!waiting_.empty() && waiting_.front().due <= now) {
      const Incoming* const out = waiting_.front().message;
      waiting_.pop_front();
      return out;
    }
    if (failure_ && waiting_.empty() && failed_at_ + delay_ <= now) return *failure_;
    return nullptr;
  }

  Result<void> release(std::uint32_t slot) override {
    if (failure_) return ok();  // Nobody is left to fill it again; poll() will tell.
    return receiver_->release(slot);
  }

  void arm(net::ReadyCallback ready) override {
    ready_ = std::move(ready);
    wake_when_due();
    if (!failure_) receiver_->arm(ready_);
  }

 private:
  void wake_when_due() {
    if (waiting_.empty() && !failure_) return;
    const net::TimePoint due = waiting_.empty() ? failed_at_ + delay_ : waiting_.front().due;
    timer_ = env_.clock->start_timer(env_.executor, due, ready_);
  }

  struct Waiting {
    const Incoming* message = nullptr;
    net::TimePoint due;
  };

  std::unique_ptr<ChannelReceiver> receiver_;
  net::Env env_;
  net::Duration delay_;
  std::deque<Waiting> waiting_;
  std::optional<Error> failure_;  // Of the receiver; told in its turn.
  net::TimePoint failed_at_;
  net::ReadyCallback ready_;  // The newest that was armed.
  std::unique_ptr<net::Timer> timer_;
};

}  // namespace

std::unique_ptr<ChannelReceiver> make_delayed_receiver(std::unique_ptr<ChannelReceiver> receiver,
                                                       net::Env env, net::Duration delay) {
  return std::make_unique<DelayedReceiver>(std::move(receiver), std::move(env), delay);
}

}  // namespace recua::rpc
