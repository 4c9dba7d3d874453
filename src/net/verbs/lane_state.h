#pragma once
/// What a Lane consists of. Internal to lane.cc (life), lane_write.cc and lane_poll.cc.
///
/// Every request has a running number, which is its wr_id: since a queue pair carries requests out
/// in order, one completion tells that all before it are done, and write_ends turns that into
/// writes. Receives carry the index of their cell and one bit that sets them apart, since a failed
/// completion has nothing valid but its wr_id (ibv_poll_cq(3)).

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "net/verbs/lane.h"

namespace recua::net::verbs {

inline constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kMarker = kReceiveBit - 1;  // The send that fence() waits for.
inline constexpr std::size_t kBatch = 16;                  // Completions that one poll takes.
inline constexpr std::size_t kPartsMax = 4;                // Of a write.
inline constexpr std::uint32_t kAnnounceBytes = 4;         // In the SEND form, little endian.
inline constexpr std::uint32_t kCellBytes = 8;

struct Lane::State {
  /// Registered memory, as write() looks for it.
  struct Source {
    std::uintptr_t begin = 0;
    std::size_t bytes = 0;
    std::uint32_t lkey = 0;
  };

  // Members die from the bottom up: the queue pair first, then what it uses, the device last.
  std::unique_ptr<Device> device;
  std::optional<WaitHandle> event_wait;  // Of the device's events; made by the first arm_in().
  std::unique_ptr<Domain> domain;
  std::vector<std::byte> cells;  // For announcements: one per receive, then one per send.
  std::unique_ptr<Region> cell_region;
  std::unique_ptr<Region> window;
  std::vector<std::unique_ptr<Region>> source_regions;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;
  std::unique_ptr<CmListener> cm_listener;  // Of lanes that rdma_cm connects.
  std::unique_ptr<CmConnection> cm;
  CmToken cm_token{};

  PortChoice port;
  LaneOptions options;
  LaneAddress local;
  LaneAddress remote;
  LaneCounters counters;
  std::string name;  // "rdma rxa/1 -> 10.9.0.2"
  std::optional<Error> failure;
  bool failed_by_flush = false;  // Then a completion or event that tells more may still come.
  bool is_connected = false;
  bool is_fenced = false;
  bool queue_is_broken = false;

  std::uint32_t inline_bytes_max = 0;
  std::uint32_t segments_max = 1;
  std::uint64_t piece_bytes_max = 0;
  std::uint32_t mtu_bytes = 0;

  NotedCallback on_event;
  std::uint32_t n_polls = 0;

  std::uint64_t requests_posted = 0;
  std::uint64_t requests_done = 0;
  std::uint64_t requests_unsignaled = 0;  // Since the last signaled one.
  std::uint64_t writes_posted = 0;
  std::uint64_t writes_done = 0;
  std::uint32_t writes_unsignaled = 0;
  std::vector<std::uint64_t> write_ends;  // Of write i, at i mod its size: one past its requests.
  std::uint32_t receives_posted = 0;
  bool marker_is_back = false;
  std::vector<Source> sources;

  // What write() builds its post from and take() works on; all of it is allocated once.
  std::vector<SendRequest> requests;
  std::size_t n_requests = 0;
  std::vector<Segment> segments;
  std::array<Completion, kBatch> batch;
  std::array<ReceiveRequest, kBatch> again;

  void fail(ErrorCode code, std::string_view why, bool by_flush = false);
  Result<void> open(Provider& provider, std::span<std::byte> window_memory,
                    std::span<const std::span<std::byte>> source_memory);
  Result<void> check_port(PortInfo& now);
  Result<void> set_remote(const LaneAddress& remote);
  void advance_cm();
  Result<void> post_receives(std::span<const ReceiveRequest> receives);
  [[nodiscard]] ReceiveRequest receive(std::uint64_t cell) const;

  // write()
  [[nodiscard]] const Source* find_source(std::span<const std::byte> part) const;
  Result<void> build(const Write& write, bool all_inline);
  void append_announcement(std::uint32_t value, Segment& segment);
  [[nodiscard]] Error unregistered(std::size_t bytes) const;
  [[nodiscard]] Error too_long() const;
  [[nodiscard]] bool wants_signal(const Write& write) const;

  // poll()
  std::size_t take(std::vector<Announcement>& announcements);
  void take_send(const Completion& completion);
  /// False: it was no announcement, and the lane has failed.
  bool take_receive(const Completion& completion, std::vector<Announcement>& announcements);
  void take_failed(const Completion& completion);
  void take_event(const DeviceEvent& event);
  void take_events();
};

}  // namespace recua::net::verbs
