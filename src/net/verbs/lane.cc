// Every request has a running number, which is its wr_id: since a queue pair carries requests out
// in order, one completion tells that all before it are done, and write_ends_ turns that into
// writes. Receives carry the index of their cell and one bit that sets them apart, since a failed
// completion has nothing valid but its wr_id (ibv_poll_cq(3)).
#include "net/verbs/lane.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/random.h"

namespace recua::net::verbs {
namespace {

constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;
constexpr std::uint64_t kMarker = kReceiveBit - 1;  // The send that fence() waits for.
constexpr std::uint32_t kMax24 = 0xffffff;
constexpr std::size_t kBatch = 16;  // Completions that one poll takes.
constexpr std::size_t kPartsMax = 4;
constexpr std::uint32_t kSendDepthMin = 16;  // Half of it holds a write of kPartsMax parts.
constexpr std::uint64_t kPieceBytesMax = std::uint64_t{1} << 30;  // Segments have 32 bits.
// A port that does not say how long messages may be.
constexpr std::uint64_t kPieceBytesUnknown = std::uint64_t{1} << 20;
constexpr std::uint32_t kAnnounceBytes = 4;  // In the SEND form, little endian.
constexpr std::uint32_t kCellBytes = 8;

// fence() waits until a card has given back all that was posted, which takes it microseconds; this
// ends the wait for a card that lost some: about a second without any completion.
constexpr int kFencePollsYielding = 1000;
constexpr int kFencePollsMax = 11000;
constexpr auto kFencePause = std::chrono::microseconds(100);

void store(std::byte* out, std::uint32_t value) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}
std::uint32_t load(const std::byte* in) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= std::to_integer<std::uint32_t>(in[i]) << (8 * i);
  return value;
}

Error broken(std::string_view what, std::uint64_t value, std::string_view right) {
  return {ErrorCode::kProtocol,
          fmt::format("the peer's lane has {} {}, need {}", what, value, right)};
}

/// What no honest peer sends. `ours` is what it is to be connected with.
Result<void> check_address(const PortAddress& ours, const LaneAddress& remote) {
  const PortAddress& port = remote.port;
  if (remote.qp_number < 2 || remote.qp_number > kMax24)
    return broken("queue pair number", remote.qp_number, "2 to 16777215");
  if (remote.psn > kMax24) return broken("first packet number", remote.psn, "at most 16777215");
  if (remote.window_bytes == 0) return broken("window bytes", 0, "at least 1");
  if (remote.window_address == 0 || remote.window_bytes - 1 > UINT64_MAX - remote.window_address) {
    return Error{
        ErrorCode::kProtocol,
        fmt::format("the peer's window of {} bytes at address {:#x} is outside of any memory",
                    remote.window_bytes, remote.window_address)};
  }
  if (remote.window_rkey == 0) return broken("window key", 0, "another one");
  const std::uint32_t mtu = port.mtu_bytes;
  if (mtu != 256 && mtu != 512 && mtu != 1024 && mtu != 2048 && mtu != 4096)
    return broken("MTU", mtu, "256, 512, 1024, 2048 or 4096");
  if (port.link_layer != ours.link_layer || port.transport != ours.transport) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("the peer's lane is not of the kind that was agreed: {}",
                             why_no_pair({ours}, {port}))};
  }
  if (port.link_layer == LinkLayer::kInfiniBand) {
    if (port.lid == 0 || port.lid >= 0xc000) return broken("LID", port.lid, "1 to 49151");
  } else if (port.gid == Gid{} || port.gid[0] == std::byte{0xff}) {
    return Error{ErrorCode::kProtocol, fmt::format("the peer's lane has the address {}, which is "
                                                   "none of a host",
                                                   to_string(port.gid))};
  }
  return ok();
}

}  // namespace

struct Lane::State {
  /// Registered memory, as write() looks for it.
  struct Source {
    std::uintptr_t begin = 0;
    std::size_t bytes = 0;
    std::uint32_t lkey = 0;
  };

  // Members die from the bottom up: the queue pair first, then what it uses, the device last.
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::vector<std::byte> cells;  // For announcements: one per receive, then one per send.
  std::unique_ptr<Region> cell_region;
  std::unique_ptr<Region> window;
  std::vector<std::unique_ptr<Region>> source_regions;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;

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

  // What write() builds its post from; all of it is reserved once.
  std::vector<SendRequest> requests;
  std::vector<Segment> segments;
  std::uint64_t address = 0;  // Where the next byte goes.
  std::uint64_t room = 0;     // Bytes that the newest request may still take.

  std::array<Completion, kBatch> batch;

  void fail(ErrorCode code, std::string_view why, bool by_flush = false);
  Result<void> open(Provider& provider, std::span<std::byte> window_memory,
                    std::span<const std::span<std::byte>> source_memory);
  Result<void> check_port(PortInfo& now);
  Result<void> post_receives(std::span<const ReceiveRequest> receives);
  [[nodiscard]] ReceiveRequest receive(std::uint64_t cell) const;

  // write()
  [[nodiscard]] const Source* find_source(std::span<const std::byte> part) const;
  Result<void> build(const Write& write, bool all_inline);
  bool append(std::span<const std::byte> part, std::uint32_t lkey, bool is_inline);
  void append_announcement(std::uint32_t value);
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

void Lane::State::fail(ErrorCode code, std::string_view why, bool by_flush) {
  if (failure && (!failed_by_flush || by_flush)) return;
  failure = Error{code, fmt::format("{}: {}", name, why)};
  failed_by_flush = by_flush;
}

// ---- Setting up ---------------------------------------------------------------------------------

Result<void> Lane::State::check_port(PortInfo& now) {
  RECUA_ASSIGN_OR_RETURN(now, device->query_port(port.port.number));
  if (now.state != PortState::kActive)
    return Error{ErrorCode::kUnavailable, "the port is not active any more"};
  const bool is_there = std::ranges::any_of(now.gids, [&](const GidEntry& entry) {
    return entry.index == port.gid.index && entry.gid == port.gid.gid;
  });
  if (is_there) return ok();
  return Error{ErrorCode::kUnavailable,
               fmt::format("GID {} is not {} any more", port.gid.index, to_string(port.gid.gid))};
}

Result<void> Lane::State::open(Provider& provider, std::span<std::byte> window_memory,
                               std::span<const std::span<std::byte>> source_memory) {
  RECUA_ASSIGN_OR_RETURN(device, provider.open(port.device));
  PortInfo now;
  if (auto checked = check_port(now); !checked.ok()) return std::move(checked).error().within(name);
  now.gids.clear();
  port.port = std::move(now);
  const std::uint64_t message_bytes_max = port.port.message_bytes_max;
  piece_bytes_max =
      message_bytes_max == 0 ? kPieceBytesUnknown : std::min(message_bytes_max, kPieceBytesMax);

  RECUA_ASSIGN_OR_RETURN(domain, device->create_domain());
  const std::size_t n_cells = options.receive_depth + options.send_depth;
  cells.resize(n_cells * kCellBytes);
  RECUA_ASSIGN_OR_RETURN(cell_region, domain->register_memory(cells, Access::kLocal));
  RECUA_ASSIGN_OR_RETURN(window, domain->register_memory(window_memory, Access::kRemoteWrite));
  for (const std::span<std::byte> memory : source_memory) {
    if (memory.empty()) continue;
    RECUA_ASSIGN_OR_RETURN(auto region, domain->register_memory(memory, Access::kLocal));
    sources.push_back({.begin = reinterpret_cast<std::uintptr_t>(memory.data()),
                       .bytes = memory.size(),
                       .lkey = region->lkey()});
    source_regions.push_back(std::move(region));
  }

  RECUA_ASSIGN_OR_RETURN(
      queue, device->create_completion_queue(options.send_depth + options.receive_depth + 1));
  segments_max = std::clamp<std::uint32_t>(device->info().sge_max, 1, kPartsMax);
  RECUA_ASSIGN_OR_RETURN(
      pair, domain->create_queue_pair(*queue, {.port = port.port.number,
                                               .send_depth = options.send_depth + 1,  // fence()
                                               .receive_depth = options.receive_depth,
                                               .segments_max = segments_max,
                                               .inline_bytes = options.inline_bytes,
                                               .remote_write = true}));
  inline_bytes_max = pair->inline_bytes_max();

  requests.reserve(options.send_depth + 1);
  segments.reserve(requests.capacity() + kPartsMax);
  write_ends.resize(options.send_depth);
  std::vector<ReceiveRequest> receives;
  for (std::uint64_t cell = 0; cell < options.receive_depth; ++cell)
    receives.push_back(receive(cell));
  return post_receives(receives);
}

ReceiveRequest Lane::State::receive(std::uint64_t cell) const {
  return {.wr_id = kReceiveBit | cell,
          .segment = {.data = cells.data() + cell * kCellBytes,
                      .bytes = kCellBytes,
                      .lkey = cell_region->lkey()}};
}

Result<void> Lane::State::post_receives(std::span<const ReceiveRequest> receives) {
  RECUA_RETURN_IF_ERROR(pair->post_receive(receives));
  receives_posted += static_cast<std::uint32_t>(receives.size());
  return ok();
}

Result<std::unique_ptr<Lane>> Lane::create(Provider& provider, const PortChoice& port,
                                           std::span<std::byte> window,
                                           std::span<const std::span<std::byte>> sources,
                                           std::uint64_t randomness, const LaneOptions& options) {
  RECUA_CHECK(!window.empty());
  RECUA_CHECK(options.receive_depth >= 1 && options.signal_every >= 1);
  auto state = std::make_unique<State>();
  state->port = port;
  state->options = options;
  state->options.send_depth = std::max(options.send_depth, kSendDepthMin);
  state->name = fmt::format("rdma {}/{}", port.device, port.port.number);
  RECUA_RETURN_IF_ERROR(state->open(provider, window, sources));
  state->local = {.port = port_address(state->port),
                  .qp_number = state->pair->number(),
                  .psn = static_cast<std::uint32_t>(mix(randomness)) & kMax24,
                  .window_address = reinterpret_cast<std::uint64_t>(window.data()),
                  .window_rkey = state->window->rkey(),
                  .window_bytes = window.size()};
  return std::unique_ptr<Lane>(new Lane(std::move(state)));
}

Lane::Lane(std::unique_ptr<State> state) : state_(std::move(state)) {}
Lane::~Lane() = default;

const LaneAddress& Lane::local() const { return state_->local; }
std::uint32_t Lane::inline_bytes_max() const { return state_->inline_bytes_max; }
std::uint32_t Lane::mtu_bytes() const { return state_->mtu_bytes; }
std::uint64_t Lane::n_written() const { return state_->writes_posted; }
std::uint64_t Lane::n_completed() const { return state_->writes_done; }
const std::optional<Error>& Lane::failure() const { return state_->failure; }
const LaneCounters& Lane::counters() const { return state_->counters; }

Result<void> Lane::connect(const LaneAddress& remote) {
  State& state = *state_;
  RECUA_CHECK(!state.is_connected);
  if (auto checked = check_address(state.local.port, remote); !checked.ok())
    return std::move(checked).error().within(state.name);
  state.remote = remote;
  state.name = fmt::format("{} -> {}", state.name,
                           remote.port.link_layer == LinkLayer::kInfiniBand
                               ? fmt::format("lid {}", remote.port.lid)
                               : to_string(remote.port.gid));
  state.mtu_bytes = std::min(state.port.port.mtu_bytes, remote.port.mtu_bytes);
  RECUA_RETURN_IF_ERROR(state.pair->connect({.address = make_address(state.port, remote.port),
                                             .remote_qp_number = remote.qp_number,
                                             .remote_psn = remote.psn,
                                             .local_psn = state.local.psn,
                                             .mtu_bytes = state.mtu_bytes}));
  state.is_connected = true;
  return ok();
}

// ---- Writing ------------------------------------------------------------------------------------

const Lane::State::Source* Lane::State::find_source(std::span<const std::byte> part) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(part.data());
  for (const Source& source : sources) {
    const std::uintptr_t offset = begin - source.begin;  // Huge if it is before.
    if (offset < source.bytes && part.size() <= source.bytes - offset) return &source;
  }
  return nullptr;
}

/// Adds a part behind what is there, in as many requests as it takes. False: too many.
bool Lane::State::append(std::span<const std::byte> part, std::uint32_t lkey, bool is_inline) {
  while (!part.empty()) {
    const bool joins = !requests.empty() && room > 0 && requests.back().inline_data == is_inline &&
                       requests.back().segments.size() < segments_max;
    if (!joins) {
      if (requests.size() == options.send_depth / 2) return false;
      room = is_inline ? inline_bytes_max : piece_bytes_max;
      requests.push_back({.segments = {segments.data() + segments.size(), 0},
                          .remote_address = address,
                          .rkey = remote.window_rkey,
                          .inline_data = is_inline});
    }
    const std::size_t n = std::min<std::size_t>(room, part.size());
    segments.push_back({.data = part.data(), .bytes = static_cast<std::uint32_t>(n), .lkey = lkey});
    SendRequest& request = requests.back();
    request.segments = {request.segments.data(), request.segments.size() + 1};
    room -= n;
    address += n;
    part = part.subspan(n);
  }
  return true;
}

/// Fills `requests`. Registered parts are gathered; a short one that is not is written inline by a
/// request of its own before them, since inline is a property of a whole request.
Result<void> Lane::State::build(const Write& write, bool all_inline) {
  requests.clear();
  segments.clear();
  address = remote.window_address + write.offset;
  room = 0;
  bool fits = true;
  for (const std::span<const std::byte> part : write.parts) {
    if (part.empty()) continue;
    if (all_inline) {
      fits = fits && append(part, 0, true);
    } else if (const Source* source = find_source(part)) {
      fits = fits && append(part, source->lkey, false);
    } else if (part.size() <= inline_bytes_max) {
      fits = fits && append(part, 0, true);
    } else {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{}: a part of {} bytes lies in no registered memory, and only {} "
                               "fit into a request",
                               name, part.size(), inline_bytes_max)};
    }
  }
  if (requests.empty())
    requests.push_back({.segments = {}, .remote_address = address, .rkey = remote.window_rkey});
  if (write.announce) append_announcement(*write.announce);
  if (fits && requests.size() <= options.send_depth / 2) return ok();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{}: a write takes more than {} requests, half of the queue's depth, at "
                           "{} bytes each",
                           name, options.send_depth / 2, piece_bytes_max)};
}

void Lane::State::append_announcement(std::uint32_t value) {
  if (options.use_immediate) {
    requests.back().operation = Operation::kWriteImmediate;
    requests.back().immediate = value;
    return;
  }
  // What a SEND brings is there after all that was written before it on the same queue pair.
  const std::uint64_t number = requests_posted + requests.size();
  std::byte* cell =
      cells.data() + (options.receive_depth + number % options.send_depth) * kCellBytes;
  store(cell, value);
  segments.push_back({.data = cell, .bytes = kAnnounceBytes, .lkey = cell_region->lkey()});
  requests.push_back({.operation = Operation::kSend,
                      .segments = {&segments.back(), 1},
                      .inline_data = inline_bytes_max >= kAnnounceBytes});
}

/// Unsignaled requests give their places back only with a signaled one after them. At most half of
/// the queue is unsignaled, and a write takes at most the other half: so there is always room for
/// it once all completions are taken.
bool Lane::State::wants_signal(const Write& write) const {
  return write.signal || writes_unsignaled + 1 >= options.signal_every ||
         requests_unsignaled + requests.size() > options.send_depth / 2;
}

Result<bool> Lane::write(const Write& write, bool* was_inline) {
  State& state = *state_;
  if (state.failure) return *state.failure;
  if (!state.is_connected || state.is_fenced) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: the lane is {}", state.name,
                             state.is_fenced ? "closed" : "not connected yet")};
  }
  std::uint64_t bytes = 0;
  for (const std::span<const std::byte> part : write.parts) bytes += part.size();
  const std::uint64_t window_bytes = state.remote.window_bytes;
  if (write.offset > window_bytes || bytes > window_bytes - write.offset ||
      write.parts.size() > kPartsMax) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("{}: a write of {} bytes in {} parts at {} is outside of the window of "
                    "{} bytes or has more than {} parts",
                    state.name, bytes, write.parts.size(), write.offset, window_bytes, kPartsMax)};
  }
  const std::uint64_t n_free =
      state.options.send_depth - (state.requests_posted - state.requests_done);
  if (n_free == 0) return false;
  const bool all_inline = bytes <= state.inline_bytes_max;
  RECUA_RETURN_IF_ERROR(state.build(write, all_inline));
  const std::size_t n_requests = state.requests.size();
  if (n_requests > n_free) return false;

  for (std::size_t i = 0; i < n_requests; ++i) state.requests[i].wr_id = state.requests_posted + i;
  const bool is_signaled = state.wants_signal(write);
  state.requests.back().signaled = is_signaled;
  if (auto posted = state.pair->post_send(state.requests); !posted.ok()) {
    if (posted.error().code == ErrorCode::kResourceExhausted) return false;
    state.fail(ErrorCode::kUnavailable, posted.error().message);
    return *state.failure;
  }
  state.requests_posted += n_requests;
  state.write_ends[state.writes_posted % state.write_ends.size()] = state.requests_posted;
  ++state.writes_posted;
  state.requests_unsignaled = is_signaled ? 0 : state.requests_unsignaled + n_requests;
  state.writes_unsignaled = is_signaled ? 0 : state.writes_unsignaled + 1;
  ++state.counters.posts;
  state.counters.requests += n_requests;
  state.counters.signals += is_signaled ? 1 : 0;
  if (was_inline != nullptr) *was_inline = all_inline;
  return true;
}

// ---- Completions and events ---------------------------------------------------------------------

void Lane::State::take_send(const Completion& completion) {
  requests_done = completion.wr_id + 1;
  while (writes_done < writes_posted &&
         write_ends[writes_done % write_ends.size()] <= requests_done) {
    ++writes_done;
  }
}

bool Lane::State::take_receive(const Completion& completion,
                               std::vector<Announcement>& announcements) {
  --receives_posted;
  if (completion.kind == CompletionKind::kReceiveImmediate) {
    announcements.push_back(
        {.value = completion.immediate, .bytes = completion.bytes, .has_bytes = true});
    return true;
  }
  if (completion.bytes != kAnnounceBytes) {
    fail(ErrorCode::kProtocol, fmt::format("the peer sent an announcement of {} bytes, need {}",
                                           completion.bytes, kAnnounceBytes));
    return false;
  }
  const std::uint64_t cell = completion.wr_id & ~kReceiveBit;
  announcements.push_back({.value = load(cells.data() + cell * kCellBytes)});
  return true;
}

void Lane::State::take_failed(const Completion& completion) {
  const bool is_receive = (completion.wr_id & kReceiveBit) != 0;
  if (is_receive) {
    --receives_posted;
  } else if (completion.wr_id == kMarker) {
    marker_is_back = true;
  }
  const bool is_flush = completion.status == Status::kFlushed;
  if (is_flush && (failure || is_fenced)) return;
  // The card knows more than that: it says in an event why it gave the queue pair up.
  if (is_flush) take_events();
  std::string why(to_string(completion.status));
  if (is_receive) why = fmt::format("receiving: {}", why);
  if (completion.vendor_error != 0)
    why += fmt::format(" (vendor error {:#x})", completion.vendor_error);
  const bool is_too_long = is_receive && completion.status == Status::kLocalLength;
  fail(is_too_long ? ErrorCode::kProtocol : ErrorCode::kUnavailable, why, is_flush);
}

/// Takes one batch of completions; how many there were.
std::size_t Lane::State::take(std::vector<Announcement>& announcements) {
  ++counters.polls;
  auto taken = queue->poll(batch);
  if (!taken.ok()) {
    queue_is_broken = true;
    fail(ErrorCode::kUnavailable, taken.error().message);
    return 0;
  }
  const std::size_t n = *taken;
  std::array<ReceiveRequest, kBatch> again;
  std::size_t n_again = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Completion& completion = batch[i];
    if (completion.status != Status::kSuccess) {
      take_failed(completion);
    } else if ((completion.wr_id & kReceiveBit) == 0) {
      take_send(completion);
    } else if (take_receive(completion, announcements)) {
      again[n_again++] = receive(completion.wr_id & ~kReceiveBit);
    }
  }
  counters.completions += n;
  if (n_again > 0 && !failure && !is_fenced) {
    if (auto posted = post_receives({again.data(), n_again}); !posted.ok())
      fail(ErrorCode::kUnavailable, posted.error().message);
  }
  return n;
}

bool Lane::poll(std::vector<Announcement>& announcements) {
  State& state = *state_;
  const bool had_failed = state.failure.has_value();
  // A peer that announces without pause must not keep the caller here.
  const std::size_t n_max = state.options.send_depth + state.options.receive_depth;
  std::size_t n_taken = 0;
  while (n_taken <= n_max) {
    const std::size_t n = state.take(announcements);
    n_taken += n;
    if (n < kBatch) break;
  }
  return n_taken > 0 || state.failure.has_value() != had_failed;
}

void Lane::State::take_event(const DeviceEvent& event) {
  const std::string_view words = event.text.empty() ? to_string(event.kind) : event.text;
  const bool is_our_port = event.port == port.port.number;
  const bool is_our_pair = event.qp_number == local.qp_number;
  switch (event.kind) {
    case EventKind::kPortError:
      if (is_our_port) fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kGidChange: {
      PortInfo now;
      if (!is_our_port) break;
      if (auto checked = check_port(now); !checked.ok())
        fail(ErrorCode::kUnavailable, checked.error().message);
      break;
    }
    case EventKind::kDeviceFatal:
      fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kQueuePairFatal:
      if (is_our_pair) fail(ErrorCode::kUnavailable, words);
      break;
    case EventKind::kAccessViolation:
      if (is_our_pair) {
        fail(ErrorCode::kProtocol,
             fmt::format("the peer wrote outside of its window of {} bytes or without the right "
                         "key ({})",
                         local.window_bytes, words));
      }
      break;
    case EventKind::kPortActive:
    case EventKind::kOther:
      break;
  }
}

void Lane::State::take_events() {
  while (const std::optional<DeviceEvent> event = device->poll_event()) take_event(*event);
}

void Lane::poll_events() { state_->take_events(); }

void Lane::arm(const asio::any_io_executor& executor, const ReadyCallback& ready) {
  state_->queue->arm(executor, ready);
  state_->device->arm_events(executor, ready);
}

// ---- The end ------------------------------------------------------------------------------------

void Lane::fence(std::vector<Announcement>& announcements) {
  State& state = *state_;
  if (std::exchange(state.is_fenced, true)) return;
  const bool is_in_error = state.pair->set_error().ok();
  // Unsignaled requests that succeeded before never complete, so there is no counting: a last one
  // is flushed after all others. Receives are counted, since rxe looks at receives that are posted
  // in the error state only when something else wakes it.
  bool waits_for_marker = false;
  if (is_in_error && state.requests_posted > state.requests_done) {
    const SendRequest marker{
        .wr_id = kMarker, .segments = {}, .rkey = state.remote.window_rkey, .signaled = true};
    waits_for_marker = state.pair->post_send({&marker, 1}).ok();
  }
  int n_idle = 0;
  while (is_in_error && n_idle < kFencePollsMax && !state.queue_is_broken) {
    const bool sends_are_back = !waits_for_marker || state.marker_is_back;
    if (sends_are_back && state.receives_posted == 0) return;
    if (state.take(announcements) > 0) {
      n_idle = 0;
    } else if (++n_idle < kFencePollsYielding) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kFencePause);
    }
  }
  // The card does not answer for its queue pair any more. Without the queue pair nothing lands.
  while (state.take(announcements) > 0) {
  }
  state.pair.reset();
}

}  // namespace recua::net::verbs
