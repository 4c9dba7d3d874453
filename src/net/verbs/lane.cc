#include "net/verbs/lane.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/random.h"
#include "net/verbs/lane_state.h"

namespace recua::net::verbs {
namespace {

constexpr std::uint32_t kMax24 = 0xffffff;
constexpr std::uint32_t kSendDepthMin = 16;  // Half of it holds a write of kPartsMax parts.
constexpr std::uint64_t kPieceBytesMax = std::uint64_t{1} << 30;  // Segments have 32 bits.
// Of a port that does not say how long messages may be.
constexpr std::uint64_t kPieceBytesUnknown = std::uint64_t{1} << 20;

// fence() waits until a card has given back all that was posted, which takes it microseconds. This
// ends the wait for a card that keeps some (rxe with its link down): about a tenth of a second
// without any completion. Nothing is lost by it: what was not noticed counts as not arrived.
constexpr int kFencePollsYielding = 1000;
constexpr int kFencePollsMax = 2000;
constexpr auto kFencePause = std::chrono::microseconds(100);

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

  requests.resize(options.send_depth);
  segments.resize(options.send_depth + kPartsMax);
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

Result<void> Lane::State::set_remote(const LaneAddress& address) {
  RECUA_CHECK(!is_connected);
  if (auto checked = check_address(local.port, address); !checked.ok())
    return std::move(checked).error().within(name);
  remote = address;
  name = fmt::format("{} -> {}", name,
                     remote.port.link_layer == LinkLayer::kInfiniBand
                         ? fmt::format("lid {}", remote.port.lid)
                         : to_string(remote.port.gid));
  mtu_bytes = std::min(port.port.mtu_bytes, remote.port.mtu_bytes);
  return ok();
}

Result<void> Lane::connect(const LaneAddress& remote) {
  State& state = *state_;
  RECUA_RETURN_IF_ERROR(state.set_remote(remote));
  RECUA_RETURN_IF_ERROR(state.pair->connect({.address = make_address(state.port, remote.port),
                                             .remote_qp_number = remote.qp_number,
                                             .remote_psn = remote.psn,
                                             .local_psn = state.local.psn,
                                             .mtu_bytes = state.mtu_bytes}));
  state.is_connected = true;
  return ok();
}

void Lane::fence(std::vector<Announcement>& announcements) {
  State& state = *state_;
  if (std::exchange(state.is_fenced, true)) return;
  state.cm_listener.reset();
  state.cm.reset();  // Tells the peer.
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
  // The card does not answer for its queue pair any more. In the error state nothing lands; where
  // it could not be brought there, nothing does without the queue pair.
  while (state.take(announcements) > 0) {
  }
  if (!is_in_error) state.pair.reset();
}

}  // namespace recua::net::verbs
