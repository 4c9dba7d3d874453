#pragma once
/// Lane: one reliable connection between two processes, for one-sided writes into a window of the
/// peer's memory, each announced by 32 bits (an immediate, or a small SEND where the device has no
/// immediates). It owns its device context, domain, regions, queue and queue pair.
///
/// Life: create() -> local() goes to the peer -> connect(what the peer said) -> write() and poll()
/// -> fence(). Any failed completion or fatal event ends the lane: failure() says why from then on,
/// what arrived before is still delivered. Nothing is ever retried here.
/// Memory: the window and the sources are registered once and outlive the lane. A write's parts
/// stay untouched until n_completed() has passed it.
/// Threads: one at a time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/verbs/address.h"
#include "net/verbs/cm.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

struct LaneOptions {
  std::uint32_t send_depth = 64;     // Requests under way, pieces of large writes included; >= 16.
  std::uint32_t receive_depth = 16;  // Announcements that the peer may send before we poll.
  std::uint32_t inline_bytes = 256;  // Wished for.
  std::uint32_t signal_every = 1;    // One completion for so many writes.
  bool use_immediate = true;         // False: WRITE, then a small SEND in the same post.
};

/// What the peer needs to know. All of it is checked by connect().
struct LaneAddress {
  PortAddress port;
  std::uint32_t qp_number = 0;
  std::uint32_t psn = 0;
  std::uint64_t window_address = 0;
  std::uint32_t window_rkey = 0;
  std::uint64_t window_bytes = 0;
};

struct LaneCounters {
  std::uint64_t posts = 0;     // Calls of post_send.
  std::uint64_t requests = 0;  // Work requests in them.
  std::uint64_t polls = 0;     // Calls of poll on the queue.
  std::uint64_t completions = 0;
  std::uint64_t signals = 0;  // Requests that asked for a completion.
};

/// An announcement of the peer, with the bytes that its last write had (0 in the SEND form).
struct Announcement {
  std::uint32_t value = 0;
  std::uint32_t bytes = 0;
  bool has_bytes = false;
};

class Lane {
 public:
  /// window: what the peer may write to. sources: what we write from. randomness: for the packet
  /// number. Errors as the provider's; kUnavailable when the port went down.
  static Result<std::unique_ptr<Lane>> create(Provider& provider, const PortChoice& port,
                                              std::span<std::byte> window,
                                              std::span<const std::span<std::byte>> sources,
                                              std::uint64_t randomness, const LaneOptions& options);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  [[nodiscard]] const LaneAddress& local() const;
  [[nodiscard]] std::uint32_t inline_bytes_max() const;
  [[nodiscard]] std::uint32_t mtu_bytes() const;  // After connect(): the smaller of both ends.
  /// kProtocol: values that no honest peer sends. kIo: the device refused.
  Result<void> connect(const LaneAddress& remote);
  /// The other way, through rdma_cm: one end listens on its port's own address and tells where, the
  /// other connects with the token; poll() carries both on. A failure ends the lane.
  Result<Endpoint> listen(const LaneAddress& remote, const CmToken& token);
  Result<void> connect_by_cm(const LaneAddress& remote, const Endpoint& listener,
                             const CmToken& token);
  /// Whether write() may be called.
  [[nodiscard]] bool is_connected() const;

  struct Write {
    std::uint64_t offset = 0;                           // Into the peer's window.
    std::span<const std::span<const std::byte>> parts;  // Written one behind the other; at most 4.
    std::optional<std::uint32_t> announce;              // Told to the peer behind the last byte.
    bool signal = false;  // Ask for a completion whatever signal_every says.
  };
  /// One post. False when the queue has no room (poll() first). The whole write is inline when it
  /// fits and was_inline is then set: its parts are free at once. kInvalidArgument: a part that
  /// lies in no source and is too long to go inline, a range outside of the window, or more pieces
  /// than half of the queue's depth. kUnavailable, kProtocol: the lane has failed.
  Result<bool> write(const Write& write, bool* was_inline = nullptr);
  /// Writes handed over so far, and those whose parts are free again.
  [[nodiscard]] std::uint64_t n_written() const;
  [[nodiscard]] std::uint64_t n_completed() const;

  /// Takes announcements in order and notices completions, events and failures. The receive of an
  /// announcement is posted again before it is returned. True when something was noticed.
  bool poll(std::vector<Announcement>& announcements);
  /// Looks at the device's events: port down, GID gone, device removed. That costs a system call,
  /// so poll() does it only after one of them has woken us, and now and then.
  void poll_events();
  /// Why the lane ended, if it did.
  [[nodiscard]] const std::optional<Error>& failure() const;

  /// Ends the lane: no write of the peer lands after it returns, and every announcement that
  /// arrived has been appended. n_completed() keeps its last value; no source is read any more.
  void fence(std::vector<Announcement>& announcements);

  /// Calls `ready` from the executor's loop after the next completion, if asked for, and after the
  /// next event: so up to twice. poll() once more after arming. What was asked for stays asked for.
  void arm(const asio::any_io_executor& executor, const ReadyCallback& ready, bool for_completions);
  /// The same for who waits in a set. False: only arm() will do.
  bool arm_in(const WaitSet& set, bool for_completions);
  /// Nothing of this lane ends a wait until the next arm_in().
  void leave_set();
  /// Ends the lane if fence() has not, drops all callbacks and leaves the set: it may now be
  /// destroyed on another thread.
  void give_up_waits();
  [[nodiscard]] const LaneCounters& counters() const;

 private:
  struct State;
  explicit Lane(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace recua::net::verbs
