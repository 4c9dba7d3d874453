#pragma once
/// BackgroundEnd: ends objects on threads of their own, and waits for that in its destructor.
///
/// To end a queue pair may take the kernel seconds: rxe waits for packets of it that wait for an
/// address which nobody answers for (3 s of ARP once a link is down), and a card in trouble for its
/// firmware. A loop that stood still for that would miss heartbeats, and be taken for lost.
/// Threads: one at a time.

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
  /// what it refers to outlives this. Without threads to be had it ends here.
  void take(std::shared_ptr<void> object);

 private:
  std::vector<std::thread> threads_;
};

}  // namespace recua::rpc
