#pragma once
/// BackgroundEnd: ends objects on threads of their own, and waits for that in its destructor.
///
/// To end a queue pair may take the kernel seconds: rxe waits for packets of it that wait for an
/// address which nobody answers for (3 s of ARP once a link is down), and a card in trouble for its
/// firmware. A loop that stood still for that would miss heartbeats, and be taken for lost.
/// Threads: one at a time.

#include <cstddef>
#include <future>
#include <memory>
#include <vector>

namespace recua::rpc {

class BackgroundEnd {
 public:
  /// Takes the last reference. Nothing that the object does while it ends may depend on a thread;
  /// what it refers to outlives this. It ends here when kThreadsMax others have not ended yet (a
  /// peer may make links fail as often as it likes), or without threads to be had.
  void take(std::shared_ptr<void> object);

 private:
  static constexpr std::size_t kThreadsMax = 8;
  std::vector<std::future<void>> endings_;  // Of std::async(), so they wait when they go.
};

}  // namespace recua::rpc
