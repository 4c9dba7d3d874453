#pragma once
/// BackgroundEnd: ends objects on threads of their own, and waits for that in its destructor.
///
/// To end a queue pair may take the kernel seconds: rxe waits for packets of it that wait for an
/// address which nobody answers for (3 s of ARP once a link is down), and a card in trouble for its
/// firmware. A loop that stood still for that would miss heartbeats, and be taken for lost.
/// Threads: one at a time.

#include <atomic>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

namespace recua::rpc {

class BackgroundEnd {
 public:
  BackgroundEnd() = default;
  BackgroundEnd(const BackgroundEnd&) = delete;
  BackgroundEnd& operator=(const BackgroundEnd&) = delete;
  ~BackgroundEnd();

  /// Takes the last reference. Nothing that the object does while it ends may depend on a thread;
  /// what it refers to outlives this. It ends here when kThreadsMax others have not ended yet (a
  /// peer may make links fail as often as it likes), or without threads to be had.
  void take(std::shared_ptr<void> object);

 private:
  static constexpr std::size_t kThreadsMax = 8;
  struct Ending {
    std::shared_ptr<std::atomic<bool>> is_over;
    std::thread thread;
  };
  std::vector<Ending> endings_;
};

}  // namespace recua::rpc
