#pragma once
/// ReadyCallback: what a sleeper is woken by. Copies share one callable, so that handing it to
/// everything that may wake the sleeper allocates nothing; make it once and pass it again and
/// again. Threads: as the callable.

#include <concepts>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

namespace recua::net {

class ReadyCallback {
 public:
  ReadyCallback() = default;
  template <class F>
    requires std::invocable<F&> && (!std::same_as<std::remove_cvref_t<F>, ReadyCallback>)
  ReadyCallback(F call)  // Implicitly, as a std::function would be.
      : call_(std::make_shared<const std::function<void()>>(std::move(call))) {}

  explicit operator bool() const { return call_ != nullptr; }
  void operator()() const { (*call_)(); }
  /// Whether both share their callable.
  friend bool operator==(const ReadyCallback&, const ReadyCallback&) = default;

 private:
  std::shared_ptr<const std::function<void()>> call_;
};

/// Leaves a note when a callback is called through it, so that whoever polls knows which of its
/// sources woke it. Threads: the loop's.
class NotedCallback {
 public:
  /// Notes, then calls ready. The same as before for the same ready.
  const ReadyCallback& through(const ReadyCallback& ready) {
    if (ready_ != ready) {
      ready_ = ready;
      noting_ = [noted = noted_, ready] {
        *noted = true;
        ready();
      };
    }
    return noting_;
  }
  /// Whether there is a note; takes it away.
  bool take() { return std::exchange(*noted_, false); }

 private:
  std::shared_ptr<bool> noted_ = std::make_shared<bool>(false);  // Shared with callbacks under way.
  ReadyCallback ready_;
  ReadyCallback noting_;
};

}  // namespace recua::net
