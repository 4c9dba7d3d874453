// Messages to a peer and from it are counted; what a message holds follows from its index. A peer
// that is ahead may have sent messages of its next exchange: they stay in its channel, or, one per
// peer, in `held`.
#include "collective/exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "collective/sums.h"
#include "rpc/tensor_header.h"

namespace recua::collective {
namespace {

/// Registered vectors up to this are copied all the same where channels complete late: that takes
/// less long than waiting for an acknowledgement (8 KiB: 0.3 us against 1 to 2).
constexpr std::size_t kCopyBytesMax = std::size_t{64} << 10;
/// While nothing comes, now and then everybody is listened to: somebody may give up.
constexpr std::uint32_t kIdlePollsPerLook = 64;

bool lies_in(std::span<const float> values, std::span<const std::byte> memory) {
  const auto bytes = std::as_bytes(values);
  return bytes.data() >= memory.data() &&
         bytes.data() + bytes.size() <= memory.data() + memory.size();
}

}  // namespace

std::size_t Exchange::n_messages(std::size_t n_values) const {
  // An empty part is a message too: who disagrees about it shall notice.
  if (n_values <= values_max_) return 1;  // Most: a division takes as long as all the rest.
  return (n_values + values_max_ - 1) / values_max_;
}

std::span<float> Exchange::cut(std::span<float> values, std::size_t message) const {
  const std::size_t begin = message * values_max_;
  return values.subspan(begin, std::min(values_max_, values.size() - begin));
}

/// Until its transport is settled a channel has no credits.
Result<bool> Exchange::settle() {
  bool moved = false;
  settled_ = true;
  for (Peer* const each : others_) {
    Peer& peer = *each;
    RECUA_ASSIGN_OR_RETURN(const bool polled, poll_sender(peer));
    RECUA_ASSIGN_OR_RETURN(const bool came, receive(peer));
    moved = moved || polled || came;
    settled_ = settled_ && peer.channels.sender->settled();
  }
  return moved || settled_;
}

bool Exchange::is_large_and_registered() const {
  bool registered = true;
  std::size_t bytes = 0;
  for (const Peer* const peer : others_) {
    if (!peer->part.sends) continue;
    registered = registered && lies_in(peer->part.out, ring_.caller());
    bytes += peer->part.out.size_bytes();
  }
  return registered && bytes > kCopyBytesMax;
}

void Exchange::choose_way() {
  const bool at_once = std::all_of(others_.begin(), others_.end(), [](const Peer* peer) {
    return !peer->part.sends || peer->channels.sender->completes_at_once();
  });
  direct_ = call_.format == WireFormat::kF32 && (at_once || is_large_and_registered());
  first_staged_ = ring_.next();
  n_staged_ = 0;
  way_is_chosen_ = true;
}

void Exchange::wake_peers() {
  if (!std::exchange(owes_wake_, false)) return;
  for (Peer* const peer : others_) peer->channels.sender->wake();
}

/// Nothing moved: senders may have something to get rid of or to hear, and others to say.
Result<bool> Exchange::look_around() {
  ++n_idle_;
  bool moved = false;
  const bool everybody = n_idle_ % kIdlePollsPerLook == 0;
  for (Peer* const each : others_) {
    Peer& peer = *each;
    const bool waits = peer.next_out < peer.n_out || !peer.channels.sender->flushed() ||
                       !is_free(peer, peer.direct_until);
    if (everybody && !peer.held) {
      RECUA_ASSIGN_OR_RETURN(const bool came, receive(peer));
      moved = moved || came;
    }
    // Last: on a shared connection the receiver may have read what is the sender's.
    if (waits || everybody) {
      RECUA_ASSIGN_OR_RETURN(const bool polled, poll_sender(peer));
      moved = moved || polled;
    }
  }
  return moved;
}

// ---- Sending ----------------------------------------------------------------------------------

Result<bool> Exchange::poll_sender(Peer& peer) {
  Result<bool> polled = peer.channels.sender->poll();
  if (!polled.ok()) return gone(peer, std::move(polled).error());
  return polled;
}

/// A part of poll(): behind a system call a processor no longer knows where calls return to, and
/// each return on the way up takes some 20 ns. (8 KiB over TCP, a core each: 1.41 -> 1.35 times one
/// message, together with what else is inlined for that in rpc/.)
[[gnu::always_inline]] inline Result<bool> Exchange::send(Peer& peer) {
  rpc::ChannelSender& sender = *peer.channels.sender;
  bool moved = false;
  while (peer.next_out < peer.n_out) {
    if (sender.credits() <= kCreditsKept) {
      RECUA_ASSIGN_OR_RETURN(const bool polled, poll_sender(peer));
      moved = moved || polled;
      if (sender.credits() <= kCreditsKept) return moved;
    }
    const std::span<float> values = cut(peer.part.out, peer.next_out);
    std::span<const std::byte> rows = std::as_bytes(values);
    std::optional<std::size_t> staged;
    if (!direct_ && !values.empty()) {
      staged = stage(peer, values);
      if (!staged) return moved;  // Once a buffer is free.
      rows = ring_.buffer(*staged).first(wire_bytes(call_.format, values.size()));
    }
    auto& descriptor = peer.descriptors[peer.slot(sender.n_sent())];
    const std::size_t n_part = peer.part.out.size();
    descriptor = n_part == peer.n_values_in ? peer.expected : encode(call_, n_part);
    const rpc::Outgoing message{
        .header = {.kind = rpc::MessageKind::kCollective,
                   .data_type = static_cast<std::uint16_t>(call_.format),
                   .session = id_.session,
                   .epoch = id_.epoch,
                   .micro_batch = static_cast<std::uint32_t>(peer.next_out),
                   .step = call_.number,
                   .n_rows = rows.empty() ? 0U : 1U,
                   .row_bytes = static_cast<std::uint32_t>(rows.size()),
                   .descriptor_bytes = static_cast<std::uint32_t>(descriptor.size()),
                   .last = peer.next_out + 1 == peer.n_out},
        .rows = rows,
        .descriptor = descriptor,
        .starving = sender.credits() == kCreditsKept + 1,
        .flush = true,
        // Of a longer vector the peer could take the first messages while the rest is sent.
        .wakes_later = peer.n_out == 1};
    Result<bool> sent = sender.try_send(message);
    if (!sent.ok()) return gone(peer, std::move(sent).error());
    RECUA_CHECK(*sent);
    if (staged) ring_.sent(*staged, index_of(peer), sender);
    if (direct_) peer.direct_until = sender.n_sent();
    owes_wake_ = owes_wake_ || message.wakes_later;
    ++peer.next_out;
    --n_left_;
    moved = true;
  }
  return moved;
}

/// The buffer that holds these values, copied at the latest now. What all peers get is copied once.
std::optional<std::size_t> Exchange::stage(const Peer& peer, std::span<float> values) {
  if (shared_ && peer.next_out < n_staged_) return ring_.after(first_staged_, peer.next_out);
  const std::size_t buffer = shared_ ? ring_.next() : ring_.of_peer(index_of(peer), peer.next_out);
  if (!ring_.take(buffer, shared_ ? n_takers_ : 1, senders_)) return std::nullopt;
  if (shared_) {
    ring_.advance();
    ++n_staged_;
  }
  std::byte* const copy = ring_.buffer(buffer).data();
  encode(call_.format, values, copy);
  // What this rank goes on with is what the others get.
  const bool is_kept = own_is_sent_ || mode_ == Mode::kPlace;
  if (is_kept && call_.format != WireFormat::kF32) decode(call_.format, copy, values);
  return buffer;
}

// ---- Receiving --------------------------------------------------------------------------------

Result<bool> Exchange::receive(Peer& peer) {
  if (peer.held) return false;
  Result<const rpc::Incoming*> came = peer.channels.receiver->poll();
  if (!came.ok()) return gone(peer, std::move(came).error());
  if (*came == nullptr) return false;
  const rpc::Incoming& message = **came;
  if (message.header.kind != rpc::MessageKind::kCollective) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} sent a message of kind {} among collective calls", peer.name,
                             static_cast<unsigned>(message.header.kind))};
  }
  if (is_giving_up(message.descriptor)) {
    Result<Decoded> decoded = decode_descriptor(message.descriptor);
    if (!decoded.ok()) return std::move(decoded).error().within(peer.name);
    peer.is_gone = peer.gave_up = true;
    return Error{decoded->giving_up->code,
                 fmt::format("{} gave up: {}", peer.name, decoded->giving_up->why)};
  }
  peer.held = &message;
  peer.held_is_checked = false;
  return true;
}

/// That what has come is what this exchange expects next.
Result<void> Exchange::check(Peer& peer) {
  const rpc::TensorHeader& header = peer.held->header;
  const std::span<const std::byte> descriptor = peer.held->descriptor;
  // Not std::equal: it compares std::byte one by one.
  const bool same_call =
      header.step == call_.number && header.data_type == static_cast<std::uint16_t>(call_.format) &&
      descriptor.size() == peer.expected.size() &&
      std::memcmp(descriptor.data(), peer.expected.data(), peer.expected.size()) == 0;
  if (!same_call) {
    Result<Decoded> decoded = decode_descriptor(descriptor);
    if (!decoded.ok()) return std::move(decoded).error().within(peer.name);
    CallId theirs = decoded->call.id;
    theirs.number = header.step;
    theirs.format = static_cast<WireFormat>(header.data_type);
    if (theirs == call_) {
      return Error{
          ErrorCode::kProtocol,
          fmt::format("{} has {} values for this rank {} in {}, which expects {}", peer.name,
                      decoded->call.n_part, rank_, to_string(call_), peer.n_values_in)};
    }
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} makes {}, this rank {} makes {}: all ranks must make the same "
                             "calls with the same sizes in the same order",
                             peer.name, to_string(theirs), rank_, to_string(call_))};
  }
  const std::size_t begin = peer.next_in * values_max_;
  const std::size_t bytes =
      wire_bytes(call_.format, std::min(values_max_, peer.n_values_in - begin));
  if (header.micro_batch != peer.next_in || peer.held->rows.size() != bytes) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} sent message {} of {} bytes in {}, this rank {} expects message "
                             "{} of {} bytes",
                             peer.name, header.micro_batch, peer.held->rows.size(),
                             to_string(call_), rank_, peer.next_in, bytes)};
  }
  peer.held_is_checked = true;
  return ok();
}

Result<void> Exchange::release(Peer& peer) {
  const std::uint32_t slot = peer.held->slot;
  peer.held = nullptr;
  peer.held_is_checked = false;
  ++peer.next_in;
  --n_left_;
  Result<void> released = peer.channels.receiver->release(slot);
  if (!released.ok()) return gone(peer, std::move(released).error());
  return ok();
}

Result<bool> Exchange::place(Peer& peer) {
  // What is overwritten may have been sent in the exchange before this one.
  if (!peer.held || !is_free(peer, peer.direct_before)) return false;
  const std::span<float> to = cut(peer.part.in, peer.next_in);
  decode(call_.format, peer.held->rows.data(), to);
  RECUA_RETURN_IF_ERROR(release(peer));
  return true;
}

bool Exchange::may_overwrite_own(std::size_t message) const {
  if (!own_is_sent_) return true;
  if (!direct_) return n_staged_ > message;
  return std::all_of(others_.begin(), others_.end(), [&](const Peer* peer) {
    return peer->n_out == 0 ||
           (peer->next_out > message && is_free(*peer, peer->first_out + message + 1));
  });
}

Result<bool> Exchange::sum() {
  if (next_sum_ == n_sums_) return false;
  for (const Peer* const peer : others_) {
    if (!peer->held || !peer->held_is_checked) return false;
    summands_[index_of(*peer)] = peer->held->rows.data();
  }
  if (!may_overwrite_own(next_sum_)) return false;
  const std::span<float> values = cut(own_, next_sum_);
  // Before the sum is written: to see whether peers sleep, whatever was written must leave first.
  if (next_sum_ + 1 == n_sums_) wake_peers();
  sum_in_rank_order(call_.format, summands_, rank_, values);
  // As a sum that was gathered from its rank is.
  if (call_.stage == Stage::kWhole) round_values(call_.format, values);
  ++next_sum_;
  for (Peer* const peer : others_) RECUA_RETURN_IF_ERROR(release(*peer));
  return true;
}

Result<bool> Exchange::poll() {
  if (!settled_) return settle();
  if (!way_is_chosen_) choose_way();
  bool moved = false;
  for (Peer* const each : others_) {
    Peer& peer = *each;
    if (peer.next_out == peer.n_out) continue;
    RECUA_ASSIGN_OR_RETURN(const bool sent, send(peer));
    moved = moved || sent;
  }
  for (Peer* const each : others_) {
    Peer& peer = *each;
    if (peer.next_in == peer.n_in) continue;
    // Just after sending mostly nothing has come: the next poll looks.
    if (moved && !peer.held && peer.channels.receiver->is_quiet()) continue;
    RECUA_ASSIGN_OR_RETURN(const bool came, receive(peer));
    if (peer.held && !peer.held_is_checked) RECUA_RETURN_IF_ERROR(check(peer));
    moved = moved || came;
    if (mode_ == Mode::kPlace) {
      RECUA_ASSIGN_OR_RETURN(const bool placed, place(peer));
      moved = moved || placed;
    }
  }
  if (mode_ == Mode::kSum) {
    RECUA_ASSIGN_OR_RETURN(const bool summed, sum());
    moved = moved || summed;
  }
  if (!moved) return look_around();
  n_idle_ = 0;
  if (is_done()) wake_peers();
  return true;
}

bool Exchange::is_quiet() const {
  bool waits = false;
  for (const Peer* const each : others_) {
    const Peer& peer = *each;
    if (peer.next_out < peer.n_out) return false;
    if (peer.next_in == peer.n_in || peer.held) continue;
    if (!peer.channels.receiver->is_quiet()) return false;
    waits = true;
  }
  return waits;
}

// ---- The end ----------------------------------------------------------------------------------

bool Exchange::is_drained() const {
  return is_done() && std::all_of(others_.begin(), others_.end(), [this](const Peer* peer) {
           return peer->channels.sender->flushed() && is_free(*peer, peer->direct_until);
         });
}

void Exchange::arm(const net::ReadyCallback& ready) {
  n_idle_ =
      kIdlePollsPerLook - 1;  // The next poll listens to everybody: what is there wakes nobody.
  for (const Peer* const each : others_) {
    const Peer& peer = *each;
    if (!peer.held) peer.channels.receiver->arm(ready);
    peer.channels.sender->arm(ready, /*for_completions=*/true);
  }
}

bool Exchange::arm_in(const net::WaitSet& set) {
  n_idle_ = kIdlePollsPerLook - 1;
  for (const Peer* const each : others_) {
    const Peer& peer = *each;
    if (!rpc::arm_or_leave(*peer.channels.receiver, set, !peer.held)) return false;
    if (!peer.channels.sender->arm_in(set, /*for_completions=*/true)) return false;
  }
  return true;
}

Error Exchange::gone(Peer& peer, Error error) {
  peer.is_gone = true;
  return std::move(error).within(peer.name);
}

}  // namespace recua::collective
