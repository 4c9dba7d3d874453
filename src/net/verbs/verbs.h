#pragma once
/// RDMA as we use it: a thin interface over libibverbs, without its headers, so that everything
/// above runs on the real thing (ibv_provider.h) and on a fake that injects every status
/// (fake_fabric.h) alike.
///
/// Provider -> Device (an opened context) -> Domain, CompletionQueue -> Region, QueuePair.
/// Ownership: children are destroyed before what they came from; whoever holds several declares
/// the Device first and the QueuePair last. Errors: kUnsupported (no RDMA here, says why),
/// kResourceExhausted (locked memory, device busy: says the remedy), kIo (names call, device and
/// errno). Threads: one at a time per Device and everything made from it.
/// Source: InfiniBand Architecture 1.4 vol. 1 ch. 9-11; RoCEv2 annex A17; ibv_post_send(3).

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/connection.h"
#include "net/wait_set.h"

namespace recua::net::verbs {

// ---- What there is ----------------------------------------------------------------------------

/// A port's address, as 16 bytes in network order: an IPv6 address, or ::ffff:a.b.c.d.
using Gid = std::array<std::byte, 16>;

enum class GidType : std::uint8_t { kInfiniBand, kRoceV1, kRoceV2 };
enum class LinkLayer : std::uint8_t { kUnknown, kEthernet, kInfiniBand };
enum class Transport : std::uint8_t { kUnknown, kInfiniBand, kIwarp };
enum class PortState : std::uint8_t { kUnknown, kDown, kInit, kArmed, kActive };

struct GidEntry {
  std::uint32_t index = 0;
  Gid gid{};
  GidType type = GidType::kRoceV2;
  std::string interface;           // "eth0"; empty when the kernel does not say.
  std::uint8_t prefix_length = 0;  // Of the interface's network, in bits of the GID; 0: unknown.
};

struct PortInfo {
  std::uint8_t number = 1;  // From 1.
  PortState state = PortState::kUnknown;
  LinkLayer link_layer = LinkLayer::kUnknown;
  std::uint32_t mtu_bytes = 0;          // Active path MTU: 256 to 4096.
  std::uint64_t speed_mbit = 0;         // Per second, width included; 0: unknown.
  std::uint16_t lid = 0;                // InfiniBand only.
  std::uint64_t message_bytes_max = 0;  // max_msg_sz
  std::vector<GidEntry> gids;           // Those that are set.
};

struct DeviceInfo {
  std::string name;  // "mlx5_0"
  Transport transport = Transport::kUnknown;
  std::uint32_t sge_max = 1;
  std::uint32_t send_depth_max = 1;  // max_qp_wr
  std::vector<PortInfo> ports;
};

// ---- Work -------------------------------------------------------------------------------------

/// The status of a completion: IBV_WC_*, by name. kOther carries the raw number in vendor_error.
enum class Status : std::uint8_t {
  kSuccess,
  kLocalLength,
  kLocalQpOperation,
  kLocalProtection,
  kFlushed,
  kMemoryWindowBind,
  kBadResponse,
  kLocalAccess,
  kRemoteInvalidRequest,
  kRemoteAccess,
  kRemoteOperation,
  kRetryExceeded,
  kRnrRetryExceeded,
  kRemoteAbort,
  kFatal,
  kOther,
};
inline constexpr int kStatusCount = static_cast<int>(Status::kOther) + 1;
/// "retry exceeded: the peer does not answer", a few words for people.
std::string_view to_string(Status status);

enum class CompletionKind : std::uint8_t {
  kSend,              // A request of ours (write or send) is over.
  kReceive,           // A SEND arrived: its bytes are in the receive's segment.
  kReceiveImmediate,  // A WRITE_WITH_IMM arrived: immediate is set, bytes is what it wrote.
};

/// After a status other than kSuccess only wr_id and status are valid (ibv_poll_cq(3)).
struct Completion {
  std::uint64_t wr_id = 0;
  Status status = Status::kSuccess;
  CompletionKind kind = CompletionKind::kSend;
  std::uint32_t immediate = 0;
  std::uint32_t bytes = 0;
  std::uint32_t vendor_error = 0;
};

struct Segment {
  const std::byte* data = nullptr;
  std::uint32_t bytes = 0;
  std::uint32_t lkey = 0;  // Ignored for inline data.
};

enum class Operation : std::uint8_t { kWrite, kWriteImmediate, kSend };

struct SendRequest {
  std::uint64_t wr_id = 0;
  Operation operation = Operation::kWrite;
  std::span<const Segment> segments;
  std::uint64_t remote_address = 0;
  std::uint32_t rkey = 0;
  std::uint32_t immediate = 0;
  bool signaled = false;
  bool inline_data = false;  // Copied by post_send(): the segments are free at once.
};

struct ReceiveRequest {
  std::uint64_t wr_id = 0;
  Segment segment;  // bytes == 0: none.
};

enum class Access : std::uint8_t {
  kLocal,        // Source of writes.
  kRemoteWrite,  // The peer may write here.
};

// ---- Objects ----------------------------------------------------------------------------------

/// Registered memory. The memory outlives it.
class Region {
 public:
  Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  virtual ~Region() = default;

  [[nodiscard]] virtual std::span<std::byte> memory() const = 0;
  [[nodiscard]] virtual std::uint32_t lkey() const = 0;
  [[nodiscard]] virtual std::uint32_t rkey() const = 0;
};

class CompletionQueue {
 public:
  CompletionQueue() = default;
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;
  virtual ~CompletionQueue() = default;

  /// Takes up to out.size() completions, oldest first; the number taken.
  virtual Result<std::size_t> poll(std::span<Completion> out) = 0;
  /// Calls `ready` once, from the executor's loop, after the next completion. What arrived before
  /// may go unnoticed: poll once more after arming. A newer callback replaces the older one.
  virtual void arm(const asio::any_io_executor& executor, ReadyCallback ready) = 0;
  /// The same for who waits in a set: the next completion ends the wait, if it is awaited. Called
  /// before each wait, since what ended the last one may have to be cleared away. False: only arm()
  /// will do.
  virtual bool arm_in(const WaitSet& /*set*/, bool /*is_awaited*/) { return false; }
  virtual void leave_set() {}
  /// Drops the callback and leaves the set: the object may now end on another thread.
  virtual void give_up_waits() {}
};

/// Where and how to reach the other end. lid 0 and is_global for RoCE; InfiniBand has a LID, and
/// a GRH only across subnets.
struct AddressVector {
  std::uint8_t port = 1;  // Ours.
  bool is_global = true;
  Gid gid{};                   // Theirs.
  std::uint8_t gid_index = 0;  // Ours.
  std::uint8_t hop_limit = 64;
  std::uint8_t traffic_class = 0;
  std::uint16_t lid = 0;
  std::uint8_t service_level = 0;

  friend bool operator==(const AddressVector&, const AddressVector&) = default;
};

struct ConnectParameters {
  AddressVector address;
  std::uint32_t remote_qp_number = 0;  // 24 bits.
  std::uint32_t remote_psn = 0;        // First packet number of each side, 24 bits.
  std::uint32_t local_psn = 0;
  std::uint32_t mtu_bytes = 1024;  // 256, 512, 1024, 2048 or 4096.
  std::uint8_t timeout = 14;       // 4.096 us * 2^timeout = 67 ms until a packet is sent again.
  std::uint8_t retry_count = 6;    // At most 6: 7 means for ever in rxe.
  std::uint8_t rnr_retry = 6;
  std::uint8_t min_rnr_timer = 12;  // 0.64 ms
};

/// A reliable connection (RC). Created in INIT, so that receives can be posted before connect().
class QueuePair {
 public:
  QueuePair() = default;
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;
  virtual ~QueuePair() = default;

  [[nodiscard]] virtual std::uint32_t number() const = 0;
  /// What inline_data may carry: what was asked for, or less; read back from the device.
  [[nodiscard]] virtual std::uint32_t inline_bytes_max() const = 0;

  /// To RTR and RTS.
  virtual Result<void> connect(const ConnectParameters& parameters) = 0;
  /// Hands over all requests in one post, in order. Their segments stay untouched until a
  /// completion at or after them. kResourceExhausted: the queue is full, nothing was posted.
  virtual Result<void> post_send(std::span<const SendRequest> requests) = 0;
  virtual Result<void> post_receive(std::span<const ReceiveRequest> requests) = 0;
  /// To the error state: whatever is outstanding completes as kFlushed, and the peer's packets are
  /// refused from here on. Idempotent.
  virtual Result<void> set_error() = 0;
};

struct QueuePairOptions {
  std::uint8_t port = 1;
  std::uint32_t send_depth = 64;
  std::uint32_t receive_depth = 64;
  std::uint32_t segments_max = 3;
  std::uint32_t inline_bytes = 256;  // Wished for; stepped down until creation succeeds.
  bool remote_write = true;
};

/// A protection domain: an rkey of it works on its queue pairs only.
class Domain {
 public:
  Domain() = default;
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;
  virtual ~Domain() = default;

  /// kResourceExhausted when memory cannot be locked: says how much, the limit and the remedy.
  virtual Result<std::unique_ptr<Region>> register_memory(std::span<std::byte> memory,
                                                          Access access) = 0;
  /// Sends and receives complete on the same queue.
  virtual Result<std::unique_ptr<QueuePair>> create_queue_pair(CompletionQueue& completions,
                                                               const QueuePairOptions& options) = 0;
};

enum class EventKind : std::uint8_t {
  kPortActive,
  kPortError,
  kGidChange,
  kDeviceFatal,
  kQueuePairFatal,   // Of one of our queue pairs.
  kAccessViolation,  // The peer wrote where it may not (IBV_EVENT_QP_ACCESS_ERR, QP_REQ_ERR).
  kOther,
};
std::string_view to_string(EventKind kind);

struct DeviceEvent {
  EventKind kind = EventKind::kOther;
  std::uint8_t port = 0;        // Of port and GID events.
  std::uint32_t qp_number = 0;  // Of queue pair events.
  std::string text = {};        // "port 1: link down", for people.
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  /// As it was when the device was opened.
  [[nodiscard]] virtual const DeviceInfo& info() const = 0;
  /// As it is now.
  virtual Result<PortInfo> query_port(std::uint8_t number) = 0;
  virtual Result<std::unique_ptr<Domain>> create_domain() = 0;
  virtual Result<std::unique_ptr<CompletionQueue>> create_completion_queue(std::size_t depth) = 0;
  /// The next asynchronous event, or nothing. Never blocks.
  virtual std::optional<DeviceEvent> poll_event() = 0;
  /// Calls `ready` once from the executor's loop when poll_event() may have something.
  virtual void arm_events(const asio::any_io_executor& executor, ReadyCallback ready) = 0;
  /// Drops that callback: the device may now end on another thread.
  virtual void give_up_waits() {}
  /// What becomes readable then, while the device lives; -1 where there is no such thing.
  [[nodiscard]] virtual int event_descriptor() const { return -1; }
};

class Provider {
 public:
  Provider() = default;
  Provider(const Provider&) = delete;
  Provider& operator=(const Provider&) = delete;
  virtual ~Provider() = default;

  /// Empty when the kernel has RDMA but no device. kUnsupported: no RDMA in this build or kernel.
  virtual Result<std::vector<DeviceInfo>> devices() = 0;
  /// kNotFound: names the devices that there are.
  virtual Result<std::unique_ptr<Device>> open(const std::string& name) = 0;
};

}  // namespace recua::net::verbs
