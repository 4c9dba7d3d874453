// How an exchange begins, and how it ends before it is done.
#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"
#include "collective/exchange.h"
#include "rpc/tensor_header.h"

namespace recua::collective {

Result<void> check_ring(const rpc::RingShape& ring) {
  constexpr std::uint64_t kBytesMin = align_up<std::uint64_t>(
      rpc::kTensorHeaderBytes + kCallDescriptorBytes + kFormatBlock * sizeof(float), 64);
  if (ring.n_slots > kCreditsKept && ring.slot_bytes >= kBytesMin && ring.slot_bytes % 64 == 0) {
    return ok();
  }
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("a ring of {} slots of {} bytes does not do for collective calls, which "
                           "need at least {} slots of {} bytes, a multiple of 64",
                           ring.n_slots, ring.slot_bytes, kCreditsKept + 1, kBytesMin)};
}

Result<std::unique_ptr<Exchange>> Exchange::create(rpc::ChannelId id, std::uint32_t rank,
                                                   std::vector<PeerChannels> channels,
                                                   SendRing ring) {
  RECUA_CHECK(rank < channels.size());
  std::optional<std::uint64_t> slot_bytes;
  for (std::size_t r = 0; r < channels.size(); ++r) {
    if (r == rank) continue;
    RECUA_CHECK(channels[r].sender != nullptr && channels[r].receiver != nullptr);
    for (const rpc::RingShape& ring_of :
         {channels[r].sender->ring(), channels[r].receiver->ring()}) {
      const std::string where =
          fmt::format("between rank {} and rank {} ({})", rank, r, channels[r].sender->peer());
      if (Result<void> checked = check_ring(ring_of); !checked.ok()) {
        return std::move(checked).error().within(where);
      }
      if (!slot_bytes) slot_bytes = ring_of.slot_bytes;
      if (ring_of.slot_bytes != *slot_bytes) {
        return Error{ErrorCode::kInvalidArgument,
                     fmt::format("{}: a ring has slots of {} bytes, others of the group have {}; "
                                 "all must be the same",
                                 where, ring_of.slot_bytes, *slot_bytes)};
      }
    }
  }
  std::unique_ptr<Exchange> out(new Exchange(id, rank, std::move(channels), std::move(ring)));
  out->slot_bytes_ = slot_bytes.value_or(0);
  return out;
}

Exchange::Exchange(rpc::ChannelId id, std::uint32_t rank, std::vector<PeerChannels> channels,
                   SendRing ring)
    : id_(id),
      rank_(rank),
      ring_(std::move(ring)),
      peers_(channels.size()),
      senders_(channels.size()),
      summands_(channels.size()) {
  for (std::size_t r = 0; r < channels.size(); ++r) {
    if (r == rank) continue;
    Peer& peer = peers_[r];
    peer.channels = std::move(channels[r]);
    peer.name = fmt::format("rank {} ({})", r, peer.channels.sender->peer());
    peer.slot = rpc::RingIndex(peer.channels.sender->ring().n_slots);
    peer.descriptors.resize(peer.channels.sender->ring().n_slots);
    senders_[r] = peer.channels.sender.get();
  }
  for (std::size_t i = 1; i < peers_.size(); ++i) {
    others_.push_back(&peers_[(rank + i) % peers_.size()]);
  }
}

void Exchange::clear_parts() {
  for (Peer& peer : peers_) peer.part = {};
}

void Exchange::begin(Mode mode, std::span<float> own) {
  mode_ = mode;
  own_ = own;
  next_sum_ = 0;
  n_idle_ = 0;
  n_takers_ = 0;
  way_is_chosen_ = false;
  shared_ = true;
  own_is_sent_ = false;
  if (values_max_ == 0 || call_.format != format_cut_) {
    const std::size_t room = slot_bytes_ - rpc::kTensorHeaderBytes - kCallDescriptorBytes;
    values_max_ = room / wire_bytes(call_.format, kFormatBlock) * kFormatBlock;
    format_cut_ = call_.format;
  }
  n_left_ = 0;
  n_sums_ = mode == Mode::kSum ? n_messages(own.size()) : 0;
  std::optional<std::span<float>> first;
  for (Peer* const each : others_) {
    Peer& peer = *each;
    const Part& part = peer.part;
    peer.next_out = peer.next_in = 0;
    peer.n_out = part.sends ? n_messages(part.out.size()) : 0;
    peer.n_values_in = mode == Mode::kSum ? own.size() : part.in.size();
    peer.n_in = part.receives ? n_messages(peer.n_values_in) : 0;
    n_left_ += peer.n_out + peer.n_in;
    peer.first_out = peer.channels.sender->n_sent();
    peer.direct_before = peer.direct_until;
    peer.held_is_checked = false;
    peer.expected = encode(call_, peer.n_values_in);
    if (!part.sends) continue;
    ++n_takers_;
    if (!first) first = part.out;
    shared_ = shared_ && part.out.data() == first->data() && part.out.size() == first->size();
    own_is_sent_ =
        own_is_sent_ || (!own.empty() && !part.out.empty() && part.out.data() == own.data());
  }
  // What is not sent is rounded all the same, for sums of the same bits as if it were.
  if (mode == Mode::kSum && !own_is_sent_) round_values(call_.format, own);
}

std::string Exchange::missing() const {
  std::string out;
  for (std::size_t r = 0; r < peers_.size(); ++r) {
    const Peer& peer = peers_[r];
    if (r == rank_) continue;
    const bool sends = peer.next_in == peer.n_in || peer.held;
    const rpc::ChannelSender& sender = *peer.channels.sender;
    const bool takes = sender.settled() && peer.next_out == peer.n_out && sender.flushed() &&
                       is_free(peer, peer.direct_until);
    if (sends && takes) continue;
    if (!out.empty()) out += "; ";
    out += !sends ? fmt::format("nothing from {}", peer.name)
                  : fmt::format("{} takes nothing", peer.name);
  }
  return out;
}

void Exchange::give_up(const Error& why) {
  wake_peers();
  // Who gave up before us has told all the others itself.
  if (std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.gave_up; }))
    return;
  giving_up_ = encode(GivingUp{.code = why.code, .why = why.message});
  for (Peer& peer : peers_) {
    rpc::ChannelSender* const sender = peer.channels.sender.get();
    if (sender == nullptr || peer.is_gone || sender->credits() == 0) continue;
    const rpc::TensorHeader header{
        .kind = rpc::MessageKind::kCollective,
        .session = id_.session,
        .epoch = id_.epoch,
        .step = call_.number,
        .descriptor_bytes = static_cast<std::uint32_t>(giving_up_.size()),
        .last = true};
    // Who cannot be told finds out by itself.
    static_cast<void>(sender->try_send(
        {.header = header, .rows = {}, .descriptor = std::as_bytes(std::span(giving_up_))}));
  }
}

std::string Exchange::others_gone() {
  std::string out;
  for (Peer& peer : peers_) {
    if (peer.channels.receiver == nullptr || peer.is_gone || peer.held) continue;
    const Result<bool> came = receive(peer);
    if (!came.ok() && !peer.gave_up) out += "; " + came.error().message;
  }
  return out;
}

}  // namespace recua::collective
