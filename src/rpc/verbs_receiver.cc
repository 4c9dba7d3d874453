// The receiver's side: announcements become arrivals, credits are written back.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "rpc/lane_set.h"
#include "rpc/verbs_path.h"
#include "sys/aligned_buffer.h"

namespace recua::rpc {
namespace {

using net::verbs::Lane;
using net::verbs::LaneAddress;

/// What a wake-up says is not looked at.
constexpr std::uint32_t kWakeUp = 0;

class VerbsReceiver final : public FastReceiver {
 public:
  VerbsReceiver(sys::AlignedBuffer credit, std::vector<std::unique_ptr<Lane>> lanes)
      : credit_(std::move(credit)), lanes_(std::move(lanes)) {
    announcements_.reserve(64);
  }

  [[nodiscard]] std::string description() const override { return lanes_.description(); }

  Result<bool> poll(std::uint64_t n_expected, std::vector<Arrival>& arrivals) override {
    bool moved = false;
    if (untold_) tell();
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      Lane* const lane = lanes_[i];
      if (lane == nullptr) continue;
      moved = lane->poll(announcements_) || moved;
      RECUA_RETURN_IF_ERROR(take(n_expected, arrivals));
      if (lane->failure() && lane->failure()->code == ErrorCode::kProtocol) {
        return *lane->failure();
      }
    }
    return moved;
  }

  void tell_released(std::uint64_t n_released, bool wake) override {
    n_released_ = n_released;
    wake_ = wake_ || wake;
    tell();
  }

  [[nodiscard]] LaneMask failed_lanes() const override { return lanes_.failed(); }
  [[nodiscard]] LaneMask lanes() const override { return lanes_.present(); }
  [[nodiscard]] std::string failure() const override { return lanes_.failure(); }

  Result<void> fence(LaneMask lanes, std::uint64_t n_expected,
                     std::vector<Arrival>& arrivals) override {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if ((lanes >> i & 1U) == 0 || lanes_[i] == nullptr) continue;
      lanes_[i]->fence(announcements_);
      lanes_.drop(i);
      RECUA_RETURN_IF_ERROR(take(n_expected, arrivals));
    }
    return ok();
  }

  void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready) override {
    lanes_.arm(executor, ready, /*for_completions=*/true);
  }
  bool arm_in(const net::WaitSet& set) override {
    return lanes_.arm_in(set, /*for_completions=*/true);
  }
  void leave_set() override { lanes_.leave_set(); }

  bool give_up_waits() override {
    lanes_.give_up_waits();
    return true;
  }

  void add_to(ChannelCounters& counters) const override { lanes_.add_to(counters); }

 private:
  Result<void> take(std::uint64_t n_expected, std::vector<Arrival>& arrivals) {
    for (const net::verbs::Announcement& each : announcements_) {
      RECUA_ASSIGN_OR_RETURN(const PieceAnnouncement piece, decode_announcement(each.value));
      // The nearest number with these low bits: rings have at most 4096 slots.
      const auto distance = static_cast<std::int16_t>(
          static_cast<std::uint16_t>(piece.sequence - static_cast<std::uint16_t>(n_expected)));
      if (distance < 0 && n_expected < static_cast<std::uint64_t>(-std::int64_t{distance})) {
        return Error{ErrorCode::kProtocol, fmt::format("announced message {} before message {}",
                                                       piece.sequence, n_expected)};
      }
      Arrival& arrival = arrivals.emplace_back();
      arrival.sequence = n_expected + static_cast<std::uint64_t>(std::int64_t{distance});
      arrival.piece = piece.piece;
      arrival.n_pieces = piece.n_pieces;
      arrival.starving = piece.starving;
      arrival.rows_alone = piece.rows_alone;
      if (each.has_bytes) arrival.bytes = each.bytes;
    }
    announcements_.clear();
    return ok();
  }

  /// Writes the number over the first lane that takes it; poll() tries again otherwise.
  void tell() {
    untold_ = true;
    std::memcpy(credit_.data(), &n_released_, sizeof(n_released_));
    const std::array<std::span<const std::byte>, 1> parts{
        std::span<const std::byte>(credit_.data(), sizeof(n_released_))};
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (!lanes_.usable(i)) continue;
      const Result<bool> written = lanes_[i]->write(
          {.offset = 0,
           .parts = parts,
           .announce = wake_ ? std::optional<std::uint32_t>(kWakeUp) : std::nullopt});
      if (!written.ok() || !*written) continue;
      untold_ = false;
      wake_ = false;
      return;
    }
  }

  sys::AlignedBuffer credit_;  // Before the lanes: they read from it.
  LaneSet lanes_;
  std::vector<net::verbs::Announcement> announcements_;
  std::uint64_t n_released_ = 0;
  bool wake_ = false;
  bool untold_ = false;
};

/// Waits for the sender at rdma_cm; cm: where, and with what.
Result<void> listen(Lane& lane, const LaneAddress& remote, const net::Env& env,
                    std::optional<VerbsOffer::Cm>& cm) {
  VerbsOffer::Cm out;
  const std::array<std::uint64_t, 2> words{env.random(), env.random()};
  static_assert(sizeof(words) == sizeof(out.token));
  std::memcpy(out.token.data(), words.data(), sizeof(words));
  RECUA_ASSIGN_OR_RETURN(out.listener, lane.listen(remote, out.token));
  cm = std::move(out);
  return ok();
}

}  // namespace

Result<VerbsAnswer> accept_lanes(const LinkPolicy& policy, RingShape ring,
                                 std::span<std::byte> memory, const std::string& local_address,
                                 std::span<const LaneAddress> offered, bool by_cm,
                                 const net::Env& env) {
  VerbsAnswer answer;
  const auto ports = usable_ports(policy, local_address, answer.none);
  if (ports.empty()) return answer;
  std::vector<net::verbs::PortAddress> ours;
  std::vector<net::verbs::PortAddress> theirs;
  for (const auto& port : ports) ours.push_back(net::verbs::port_address(port));
  for (const LaneAddress& lane : offered) theirs.push_back(lane.port);
  const auto pairs = net::verbs::pair_ports(ours, theirs, std::min(policy.lanes_max, kPiecesMax));
  if (pairs.empty()) {
    answer.none = {.reason = "reaches none of our ports: " + net::verbs::why_no_pair(ours, theirs),
                   .temporary = true};
    return answer;
  }
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer credit, sys::AlignedBuffer::allocate(64));
  const std::array<std::span<std::byte>, 1> sources{credit.bytes()};
  std::vector<std::unique_ptr<Lane>> lanes;
  for (const net::verbs::PortPair& pair : pairs) {
    const net::verbs::LaneOptions options{
        .send_depth = std::max<std::uint32_t>(32, 2 * ring.n_slots),
        // Pieces of every slot may come over one lane, when the others died.
        .receive_depth = static_cast<std::uint32_t>(ring.n_slots * pairs.size()) + 2,
        .signal_every = 16,
        .use_immediate = policy.use_immediate};
    Result<std::unique_ptr<Lane>> lane =
        Lane::create(*policy.provider, ports[pair.local],
                     memory.first(ring.n_slots * ring.slot_bytes), sources, env.random(), options);
    std::optional<VerbsOffer::Cm> cm;
    if (lane.ok()) {
      const Result<void> connected = by_cm ? listen(**lane, offered[pair.remote], env, cm)
                                           : (*lane)->connect(offered[pair.remote]);
      if (!connected.ok() && connected.error().code == ErrorCode::kProtocol) {
        return Error(connected.error());
      }
      if (!connected.ok()) lane = Error(connected.error());
    }
    if (!lane.ok()) {
      answer.none = {.reason = "cannot use RDMA: " + lane.error().message, .temporary = true};
      continue;
    }
    answer.accepted.push_back(
        {.offered = pair.remote, .lane = (*lane)->local(), .cm = std::move(cm)});
    lanes.push_back(std::move(*lane));
  }
  if (!lanes.empty()) {
    answer.receiver = std::make_unique<VerbsReceiver>(std::move(credit), std::move(lanes));
  }
  return answer;
}

}  // namespace recua::rpc
