// The sender's side. Rows are written from where they lie; headers and descriptors, a few hundred
// bytes, are gathered from a registered staging slot, unless the whole message is small enough to
// go inline, or they follow from the message before and only rows are written.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "rpc/lane_set.h"
#include "rpc/rows_alone.h"
#include "rpc/verbs_path.h"
#include "sys/aligned_buffer.h"

namespace recua::rpc {
namespace {

using net::verbs::Lane;
using net::verbs::LaneAddress;

/// Room for a header and a descriptor per slot; what does not fit goes by the connection.
constexpr std::uint64_t kStagingBytesMax = std::uint64_t{512} << 10;
/// Rings with many slots carry small descriptors.
constexpr std::uint64_t kStagingBytesAll = std::uint64_t{4} << 20;

/// Memory that lanes read from and that the receiver writes credits to.
struct SendMemory {
  sys::AlignedBuffer credit;   // One word, in a cache line of its own.
  sys::AlignedBuffer staging;  // n_slots * staging_bytes
  std::uint64_t staging_bytes = 0;
  std::vector<std::span<std::byte>> sources;  // The caller's, and staging.

  [[nodiscard]] std::uint64_t& credit_word() const {
    return *reinterpret_cast<std::uint64_t*>(credit.data());
  }
  [[nodiscard]] bool registered(std::span<const std::byte> bytes) const {
    return bytes.empty() ||
           std::any_of(sources.begin(), sources.end(), [&](const std::span<std::byte>& source) {
             return bytes.data() >= source.data() &&
                    bytes.data() + bytes.size() <= source.data() + source.size();
           });
  }
};

class VerbsSender final : public FastSender {
 public:
  VerbsSender(RingShape ring, std::uint64_t stripe_bytes_min, SendMemory memory,
              std::vector<std::unique_ptr<Lane>> lanes, bool takes_rows_alone)
      : ring_(ring),
        stripe_bytes_min_(stripe_bytes_min),
        memory_(std::move(memory)),
        lanes_(std::move(lanes)),
        records_(ring.n_slots) {
    // Lanes overtake each other, and when one dies messages may have to be sent again.
    if (takes_rows_alone && lanes_.size() == 1) last_sent_.emplace();
    announcements_.reserve(64);
  }

  [[nodiscard]] std::string description() const override { return lanes_.description(); }

  [[nodiscard]] bool ready() const override {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (lanes_[i] != nullptr && !lanes_[i]->is_connected() && !lanes_[i]->failure()) return false;
    }
    return true;
  }

  Result<bool> post(const SlotWrite& message) override {
    if (last_sent_ && last_sent_->precedes(message) && memory_.registered(message.rows)) {
      return post_rows(message);
    }
    Record& record = records_[message.sequence % ring_.n_slots];
    std::array<std::size_t, kPiecesMax> live;
    std::size_t n_live = 0;
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (lanes_.usable(i)) live[n_live++] = i;
    }
    if (n_live == 0) return false;
    const std::uint64_t bytes = message.bytes();
    if (!record.begun || record.sequence != message.sequence) {
      const bool stripe = n_live > 1 && bytes >= stripe_bytes_min_;
      record = {};
      record.sequence = message.sequence;
      record.begun = true;
      record.n_pieces = static_cast<std::uint8_t>(stripe ? n_live : 1);
    }
    std::array<std::span<const std::byte>, 3> parts{message.head, message.rows, message.descriptor};
    const bool is_inline = record.n_pieces == 1 && bytes <= lanes_[live[0]]->inline_bytes_max();
    if (!is_inline && !record.staged) {
      RECUA_RETURN_IF_ERROR(stage(message, record));
    }
    if (!is_inline) parts = record.parts;
    const std::uint64_t slot_begin =
        message.sequence % ring_.n_slots * static_cast<std::uint64_t>(ring_.slot_bytes);
    for (std::size_t p = 0; p < record.n_pieces; ++p) {
      Piece& piece = record.pieces[p];
      if (piece.posted) continue;
      const std::size_t lane = live[p % n_live];
      if (!write_piece(message, record, p, parts, slot_begin, lane)) return false;
    }
    if (last_sent_) last_sent_->set(message);
    return true;
  }

  bool poll() override {
    bool moved = false;
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      Lane* const lane = lanes_[i];
      if (lane == nullptr) continue;
      moved = lane->poll(announcements_) || moved;  // Announcements only wake us up.
    }
    announcements_.clear();
    return moved;
  }

  [[nodiscard]] bool is_complete(std::uint64_t sequence) const override {
    const Record& record = records_[sequence % ring_.n_slots];
    if (!record.begun || record.sequence != sequence) return false;
    for (std::size_t p = 0; p < record.n_pieces; ++p) {
      const Piece& piece = record.pieces[p];
      if (!piece.posted) return false;
      if (piece.arrived) continue;
      const Lane* const lane = lanes_[piece.lane];
      if (lane == nullptr || lane->n_completed() <= piece.write_number) return false;
    }
    return true;
  }

  [[nodiscard]] std::uint64_t n_released() const override {
    // The card writes these 8 aligned bytes as one.
    return std::atomic_ref<std::uint64_t>(memory_.credit_word()).load(std::memory_order_acquire);
  }

  [[nodiscard]] LaneMask failed_lanes() const override { return lanes_.failed(); }
  [[nodiscard]] LaneMask lanes() const override { return lanes_.present(); }
  [[nodiscard]] std::string failure() const override { return lanes_.failure(); }

  void drop_lanes(LaneMask lanes) override {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if ((lanes >> i & 1U) == 0 || lanes_[i] == nullptr) continue;
      lanes_[i]->fence(announcements_);
      announcements_.clear();
      // What it completed stays complete.
      for (Record& record : records_) {
        for (std::size_t p = 0; p < record.n_pieces; ++p) {
          Piece& piece = record.pieces[p];
          if (piece.posted && piece.lane == i && piece.write_number < lanes_[i]->n_completed()) {
            piece.arrived = true;
          }
        }
      }
      lanes_.drop(i);
    }
  }

  bool reopen(std::uint64_t sequence, std::uint32_t arrived_pieces) override {
    Record& record = records_[sequence % ring_.n_slots];
    if (!record.begun || record.sequence != sequence) return false;
    bool lost = false;
    for (std::size_t p = 0; p < record.n_pieces; ++p) {
      Piece& piece = record.pieces[p];
      if (!piece.posted || lanes_[piece.lane] != nullptr) {
        lost = lost || !piece.posted;
        continue;
      }
      piece.arrived = piece.arrived || (arrived_pieces >> p & 1U) != 0;
      piece.posted = piece.arrived;
      lost = lost || !piece.arrived;
    }
    return lost;
  }

  void arm(const net::asio::any_io_executor& executor, const net::ReadyCallback& ready,
           bool for_progress) override {
    lanes_.arm(executor, ready, for_progress);
  }
  bool arm_in(const net::WaitSet& set, bool for_progress) override {
    return lanes_.arm_in(set, for_progress);
  }

  bool give_up_waits() override {
    lanes_.give_up_waits();
    return true;
  }

  void add_to(ChannelCounters& counters) const override {
    lanes_.add_to(counters);
    counters.payload_copies += payload_copies_;
    counters.payload_bytes_copied += payload_bytes_copied_;
    counters.rows_alone += n_rows_alone_;
  }

 private:
  struct Piece {
    std::uint64_t write_number = 0;  // Of its lane.
    std::uint8_t lane = 0;
    bool posted = false;
    bool arrived = false;  // The receiver has it, whatever becomes of the lane.
  };
  /// A message on its way.
  struct Record {
    std::uint64_t sequence = 0;
    bool begun = false;
    bool staged = false;
    std::uint8_t n_pieces = 0;
    std::array<Piece, kPiecesMax> pieces;
    std::array<std::span<const std::byte>, 3> parts;  // All registered; once staged.
  };

  /// On the only lane, without header and descriptor.
  bool post_rows(const SlotWrite& message) {
    if (!lanes_.usable(0)) return false;
    Lane& lane = *lanes_[0];
    const std::uint64_t write_number = lane.n_written();
    const std::uint64_t slot_begin =
        message.sequence % ring_.n_slots * static_cast<std::uint64_t>(ring_.slot_bytes);
    const Result<bool> written =
        lane.write({.offset = slot_begin + kTensorHeaderBytes,
                    .parts = {&message.rows, 1},
                    .announce = encode(
                        PieceAnnouncement{.sequence = static_cast<std::uint16_t>(message.sequence),
                                          .starving = message.starving,
                                          .rows_alone = true}),
                    .signal = message.flush});
    if (!written.ok() || !*written) return false;
    Record& record = records_[message.sequence % ring_.n_slots];
    record = {};
    record.sequence = message.sequence;
    record.begun = true;
    record.n_pieces = 1;
    record.pieces[0].write_number = write_number;
    record.pieces[0].posted = true;
    last_sent_->set(message);
    ++n_rows_alone_;
    return true;
  }

  /// Header and descriptor into the slot's staging memory; rows too if they lie nowhere registered.
  Result<void> stage(const SlotWrite& message, Record& record) {
    std::byte* const begin =
        memory_.staging.data() + message.sequence % ring_.n_slots * memory_.staging_bytes;
    std::uint64_t used = 0;
    const auto put = [&](std::span<const std::byte> bytes) {
      std::memcpy(begin + used, bytes.data(), bytes.size());
      used += bytes.size();
      return std::span<const std::byte>(begin + used - bytes.size(), bytes.size());
    };
    const bool copy_rows = !memory_.registered(message.rows);
    const bool copy_descriptor = !memory_.registered(message.descriptor);
    const std::uint64_t needed = message.head.size() + (copy_rows ? message.rows.size() : 0) +
                                 (copy_descriptor ? message.descriptor.size() : 0);
    if (needed > memory_.staging_bytes) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("{} bytes outside of registered memory do not fit the {} of a "
                               "staging slot",
                               needed, memory_.staging_bytes)};
    }
    record.parts[0] = put(message.head);
    record.parts[1] = copy_rows ? put(message.rows) : message.rows;
    record.parts[2] = copy_descriptor && !message.descriptor.empty() ? put(message.descriptor)
                                                                     : message.descriptor;
    if (message.rows.empty()) {
      // Neighbours in staging: one segment instead of two.
      record.parts = {std::span<const std::byte>(begin, used), {}, {}};
      if (!copy_descriptor) record.parts[1] = message.descriptor;
    } else if (copy_rows) {
      ++payload_copies_;
      payload_bytes_copied_ += message.rows.size();
    }
    record.staged = true;
    return ok();
  }

  bool write_piece(const SlotWrite& message, Record& record, std::size_t index,
                   const std::array<std::span<const std::byte>, 3>& parts, std::uint64_t slot_begin,
                   std::size_t lane) {
    const PieceRange range = piece_range(message.bytes(), index, record.n_pieces);
    std::array<std::span<const std::byte>, 3> cut;
    std::size_t n_cut = 0;
    std::uint64_t at = 0;
    for (const std::span<const std::byte> part : parts) {
      const std::uint64_t from = std::max(range.begin, at);
      const std::uint64_t to = std::min<std::uint64_t>(range.end, at + part.size());
      if (from < to) cut[n_cut++] = part.subspan(from - at, to - from);
      at += part.size();
    }
    Piece& piece = record.pieces[index];
    piece.write_number = lanes_[lane]->n_written();
    const Result<bool> written = lanes_[lane]->write(
        {.offset = slot_begin + range.begin,
         .parts = std::span(cut).first(n_cut),
         .announce =
             encode(PieceAnnouncement{.sequence = static_cast<std::uint16_t>(message.sequence),
                                      .piece = static_cast<std::uint8_t>(index),
                                      .n_pieces = record.n_pieces,
                                      .starving = message.starving}),
         .signal = message.flush});
    // A refusal to post fails the lane, which the next poll() finds; the piece is still unposted.
    if (!written.ok() || !*written) return false;
    piece.lane = static_cast<std::uint8_t>(lane);
    piece.posted = true;
    piece.arrived = false;
    return true;
  }

  RingShape ring_;
  std::uint64_t stripe_bytes_min_;
  SendMemory memory_;  // Before the lanes: they deregister it.
  LaneSet lanes_;
  std::vector<Record> records_;        // Message s at s % n_slots.
  std::optional<LastSent> last_sent_;  // Set if rows may go alone.
  std::vector<net::verbs::Announcement> announcements_;
  std::uint64_t payload_copies_ = 0;
  std::uint64_t payload_bytes_copied_ = 0;
  std::uint64_t n_rows_alone_ = 0;
};

Result<SendMemory> allocate_memory(RingShape ring, std::vector<std::span<std::byte>> sources,
                                   std::uint64_t n_released) {
  SendMemory memory;
  memory.staging_bytes = align_up<std::uint64_t>(
      std::min({ring.slot_bytes, kTensorHeaderBytes + kStagingBytesMax,
                std::max<std::uint64_t>(kStagingBytesAll / ring.n_slots, 4096)}),
      64);
  RECUA_ASSIGN_OR_RETURN(memory.credit, sys::AlignedBuffer::allocate(64));
  RECUA_ASSIGN_OR_RETURN(memory.staging,
                         sys::AlignedBuffer::allocate(ring.n_slots * memory.staging_bytes));
  memory.credit_word() = n_released;
  memory.sources = std::move(sources);
  memory.sources.push_back(memory.staging.bytes());
  return memory;
}

}  // namespace

struct VerbsOffer::State {
  RingShape ring;
  std::uint64_t stripe_bytes_min = 0;
  SendMemory memory;
  std::vector<std::unique_ptr<Lane>> lanes;
  NoLanes none;
  std::uint64_t uncut_bytes = UINT64_MAX;
  bool by_cm = false;
};

VerbsOffer::VerbsOffer(std::unique_ptr<State> state) : state_(std::move(state)) {}
VerbsOffer::~VerbsOffer() = default;

std::unique_ptr<VerbsOffer> VerbsOffer::prepare(const LinkPolicy& policy, RingShape ring,
                                                std::vector<std::span<std::byte>> sources,
                                                const std::string& local_address,
                                                std::uint64_t n_released, const net::Env& env) {
  auto state = std::make_unique<State>();
  state->ring = ring;
  state->stripe_bytes_min = policy.stripe_bytes_min;
  const auto ports = usable_ports(policy, local_address, state->none);
  state->by_cm = policy.use_rdma_cm ||
                 std::any_of(ports.begin(), ports.end(), [](const net::verbs::PortChoice& port) {
                   return port.transport == net::verbs::Transport::kIwarp;
                 });
  if (!ports.empty()) {
    Result<SendMemory> memory = allocate_memory(ring, std::move(sources), n_released);
    if (memory.ok()) {
      state->memory = std::move(*memory);
    } else {
      state->none = {.reason = "cannot use RDMA: " + memory.error().message, .temporary = true};
    }
  }
  for (const net::verbs::PortChoice& port : ports) {
    if (state->memory.staging.size() == 0) break;
    // A wake-up takes a receive; the next can only come after another message of ours.
    const net::verbs::LaneOptions options{
        .send_depth = std::max<std::uint32_t>(64, 4 * ring.n_slots),
        .receive_depth = 2 * ring.n_slots + 2,
        .signal_every = std::max<std::uint32_t>(1, ring.n_slots / 2),
        .use_immediate = policy.use_immediate};
    Result<std::unique_ptr<Lane>> lane =
        Lane::create(*policy.provider, port, state->memory.credit.bytes(), state->memory.sources,
                     env.random(), options);
    if (lane.ok()) {
      state->lanes.push_back(std::move(*lane));
      state->uncut_bytes = std::min(state->uncut_bytes, port.port.message_bytes_max);
    } else {
      state->none = {.reason = "cannot use RDMA: " + lane.error().message, .temporary = true};
    }
  }
  return std::unique_ptr<VerbsOffer>(new VerbsOffer(std::move(state)));
}

std::vector<LaneAddress> VerbsOffer::lanes() const {
  std::vector<LaneAddress> out;
  for (const auto& lane : state_->lanes) out.push_back(lane->local());
  return out;
}
const NoLanes& VerbsOffer::none() const { return state_->none; }
std::uint64_t VerbsOffer::uncut_bytes() const { return state_->uncut_bytes; }
bool VerbsOffer::by_cm() const { return state_->by_cm; }

Result<std::unique_ptr<FastSender>> VerbsOffer::connect(std::unique_ptr<VerbsOffer> offer,
                                                        std::span<const Accepted> accepted,
                                                        bool takes_rows_alone) {
  State& state = *offer->state_;
  std::vector<std::unique_ptr<Lane>> lanes;
  for (const Accepted& each : accepted) {
    if (each.offered >= state.lanes.size() || state.lanes[each.offered] == nullptr) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("the answer names offered lane {} twice, or there are only {}",
                               each.offered, state.lanes.size())};
    }
    if (each.lane.window_bytes < state.ring.n_slots * state.ring.slot_bytes) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("the answer's window has {} bytes, the ring {}",
                               each.lane.window_bytes, state.ring.n_slots * state.ring.slot_bytes)};
    }
    Lane& lane = *state.lanes[each.offered];
    RECUA_RETURN_IF_ERROR(each.cm ? lane.connect_by_cm(each.lane, each.cm->listener, each.cm->token)
                                  : lane.connect(each.lane));
    lanes.push_back(std::move(state.lanes[each.offered]));
  }
  return std::unique_ptr<FastSender>(
      std::make_unique<VerbsSender>(state.ring, state.stripe_bytes_min, std::move(state.memory),
                                    std::move(lanes), takes_rows_alone));
}

}  // namespace recua::rpc
