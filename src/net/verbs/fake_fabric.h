#pragma once
/// FakeFabric: RDMA devices that exist in this process only. Queue pairs of its devices are
/// connected with each other; a write is a memcpy after the same checks that a card makes
/// (protection domain, rkey, range, rights, posted receive). Every status and event can be
/// injected. For unit tests, the simulation, and instruction counts.
///
/// Delivery is at once, inside post_send(), unless hold() is on; so a run is reproducible.
/// Threads: all calls of all its objects may come from different threads (one mutex).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "net/verbs/verbs.h"

namespace recua::net::verbs {

struct FabricState;

/// What a fake device can do less than others.
struct FakeLimits {
  std::uint32_t inline_bytes_max = 220;         // Larger wishes fail at creation.
  std::uint64_t message_bytes_max = 1 << 20;    // max_msg_sz
  std::uint64_t locked_bytes_max = UINT64_MAX;  // Registration beyond it: kResourceExhausted.
  std::uint32_t sge_max = 30;
  bool immediates = true;
  bool flushes = true;  // False: the error state gives nothing back, as rxe with its link down.
  Transport transport = Transport::kInfiniBand;  // RoCE says so too.
};

/// Objects that are alive, over all devices.
struct FakeCounts {
  std::size_t contexts = 0;
  std::size_t domains = 0;
  std::size_t regions = 0;
  std::size_t queues = 0;
  std::size_t queue_pairs = 0;
  friend bool operator==(const FakeCounts&, const FakeCounts&) = default;
};

class FakeFabric {
 public:
  FakeFabric();
  ~FakeFabric();
  FakeFabric(const FakeFabric&) = delete;
  FakeFabric& operator=(const FakeFabric&) = delete;

  /// Adds a device with one port whose RoCEv2 GIDs are a link-local one (index 0) and these
  /// addresses ("10.0.0.1", "fd00::1") from index 1.
  void add_device(const std::string& host, const std::string& name,
                  const std::vector<std::string>& addresses, const FakeLimits& limits = {});
  /// What processes on that host see.
  std::unique_ptr<Provider> provider(const std::string& host);

  // Faults. A device is named by its name, which is unique over all hosts.
  /// The next n work requests posted on the device complete with this status, and so fail the
  /// queue pair: theirs complete as kFlushed afterwards.
  void fail_sends(const std::string& device, Status status, int n = 1);
  /// The receive that the next n announcements or SENDs to the device take fails with this status,
  /// and with it the receiver's queue pair; the sender gets kRemoteOperation.
  void fail_receives(const std::string& device, Status status, int n = 1);
  /// Down: port event, and every post to or from it ends in kRetryExceeded. (rxe says
  /// kLocalQpOperation on the side whose link it is.)
  void set_port_up(const std::string& device, bool up);
  /// Packets vanish, nobody gets an event; posts end in kRetryExceeded.
  void set_silent(const std::string& device, bool silent);
  /// Replaces the address of a GID index and raises kGidChange.
  void change_gid(const std::string& device, std::uint32_t index, const std::string& address);
  /// kDeviceFatal; posts fail, and the device is gone from devices().
  void remove_device(const std::string& device);
  void raise(const std::string& device, const DeviceEvent& event);
  /// open() fails as a busy device does.
  void set_busy(const std::string& device, bool busy);
  void set_limits(const std::string& device, const FakeLimits& limits);
  /// Keeps deliveries (and their completions) back; release() lets n of them happen, -1: all, and
  /// says how many it were. hold(false) releases all.
  void hold(bool on);
  std::size_t release(int n = -1);
  /// Whoever ends a queue pair stands still until this is false again, as in a kernel that waits
  /// for packets to go away.
  void hold_ends(bool on);

  [[nodiscard]] FakeCounts counts() const;
  /// Once what ends on other threads has ended; after 5 s what is left.
  [[nodiscard]] FakeCounts counts_in_the_end() const;

 private:
  std::shared_ptr<FabricState> state_;
};

}  // namespace recua::net::verbs
