#pragma once
/// One direction of tensor messages between an ordered pair of processes, on any transport.
///
/// The receiver owns a ring of slots in memory that its caller provides (a device buffer, so that
/// the next operator reads the rows where they arrived). The sender may only fill slots it holds
/// credits for; a slot comes back with release(). Nothing is allocated because a peer asked. Layout
/// of a message, wherever it lies: TensorHeader | rows | descriptor (docs/protocol.md).
///
/// Both ends are polled: poll() moves what can be moved and never blocks; when it moved nothing and
/// there is no other work, arm() a callback and sleep in the loop, or arm_in() a set and sleep
/// there for a moment: for cheaper wake-ups of whoever is woken soon. One thread at a time per
/// object. Errors end the channel: kUnavailable, kProtocol; the message names the peer.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/result.h"
#include "net/connection.h"
#include "net/wait_set.h"

namespace recua::rpc {

/// What a tensor message carries.
enum class MessageKind : std::uint16_t {
  kStep = 1,    // A micro-batch on its way through the stages: rows are activations.
  kResult = 2,  // Outputs of the last stage: rows are logits (or none), the rest in the descriptor.
  kFailure = 3,     // The stage could not do this micro-batch: the descriptor says why.
  kChunk = 4,       // A chunk of weights: one row, its bytes; the step is its request's number.
  kCollective = 5,  // A part of a collective call: rows are numbers; collective/message.h.
};

/// Encoded into 64 bytes, little endian; docs/protocol.md, "Tensor messages".
struct TensorHeader {
  MessageKind kind = MessageKind::kStep;
  std::uint16_t data_type = 0;  // GGUF number of the rows' type.
  std::uint64_t session = 0;
  std::uint32_t epoch = 0;
  std::uint32_t micro_batch = 0;  // Index within its step.
  std::uint64_t step = 0;
  std::uint64_t sequence = 0;  // Per channel, from 0, without gaps. Set by the sender's channel.
  std::uint32_t n_rows = 0;
  std::uint32_t row_bytes = 0;
  std::uint32_t descriptor_bytes = 0;
  bool last = false;                // The last micro-batch of its step.
  bool starving = false;            // As of Outgoing. Set by the sender's channel.
  std::uint16_t padding_bytes = 0;  // Behind the descriptor, of no meaning. Set as above.

  friend bool operator==(const TensorHeader&, const TensorHeader&) = default;
};

inline constexpr std::size_t kTensorHeaderBytes = 64;

/// Whom a channel belongs to; a message with another session or a later epoch breaks the protocol,
/// one with an earlier epoch is dropped.
struct ChannelId {
  std::uint64_t session = 0;
  std::uint32_t epoch = 0;
};

/// How big a channel's ring is. The receiver decides, the sender is told in the handshake.
struct RingShape {
  std::uint32_t n_slots = 0;
  std::uint64_t slot_bytes = 0;  // Header included.
};

struct ChannelCounters {
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;                 // Headers included, also where rows went alone.
  std::uint64_t payload_copies = 0;        // Times that rows were copied here: should stay 0.
  std::uint64_t payload_bytes_copied = 0;  // The bytes of those.
  std::uint64_t system_calls = 0;          // Reads and writes of the connection.
  std::uint64_t posts = 0;                 // Calls that hand work to a card.
  std::uint64_t requests = 0;              // Work requests in them.
  std::uint64_t polls = 0;                 // Looks at a completion queue or a shared counter.
  std::uint64_t completions = 0;           // What they found.
  std::uint64_t sleeps = 0;                // Times that a callback was armed.
  std::uint64_t failovers = 0;             // Times that lanes were given up.
  std::uint64_t resent = 0;                // Messages sent again after that.
  std::uint64_t rows_alone = 0;            // Messages sent without header and descriptor.
};

struct Outgoing {
  TensorHeader header;
  std::span<const std::byte> rows;        // n_rows * row_bytes
  std::span<const std::byte> descriptor;  // descriptor_bytes
  /// The sender needs another credit to go on, although it has some: the receiver is to return
  /// what is released at once, and to wake it. Goes without saying with the last credit.
  bool starving = false;
  /// Somebody waits for this message's completion: it comes soon even if nothing is sent after it.
  /// Goes without saying with the last of a step.
  bool flush = false;
  /// Whether the receiver sleeps need not be looked at yet: the caller calls wake() soon, or polls
  /// until flushed().
  bool wakes_later = false;
};

struct Incoming {
  TensorHeader header;  // Ours, and validated.
  std::span<std::byte> rows;
  std::span<const std::byte> descriptor;
  std::uint32_t slot = 0;  // For release().
};

class ChannelSender {
 public:
  ChannelSender() = default;
  ChannelSender(const ChannelSender&) = delete;
  ChannelSender& operator=(const ChannelSender&) = delete;
  virtual ~ChannelSender() = default;

  [[nodiscard]] virtual const std::string& peer() const = 0;
  [[nodiscard]] virtual const RingShape& ring() const = 0;
  /// What carries messages now, or did until the channel broke, for people: "rdma mlx5_0/1 ...",
  /// "tcp, because ...".
  [[nodiscard]] virtual std::string transport() const = 0;
  /// Whether that has been decided; until then there are no credits, and poll() gets on with it.
  [[nodiscard]] virtual bool settled() const = 0;
  /// Free slots at the receiver that this sender may fill now.
  [[nodiscard]] virtual std::uint32_t credits() const = 0;

  /// Starts sending; false without a credit (poll() until there is one). The message's bytes stay
  /// untouched until n_completed() has passed it. kInvalidArgument: larger than a slot.
  virtual Result<bool> try_send(const Outgoing& message) = 0;
  /// Wakes the receiver if it sleeps, where try_send() was told that this comes later.
  virtual void wake() {}
  /// Moves bytes and takes in credits, and wakes as above. True when something changed.
  virtual Result<bool> poll() = 0;
  /// Messages handed to try_send(), and those of them whose source memory is free again.
  [[nodiscard]] virtual std::uint64_t n_sent() const = 0;
  [[nodiscard]] virtual std::uint64_t n_completed() const = 0;

  /// Whether all that was sent gets there, and is noticed, without another poll(), unless the
  /// transport fails.
  [[nodiscard]] virtual bool flushed() const = 0;
  /// Whether messages are as a rule complete as soon as they are sent, wherever their rows lie: by
  /// the connection and by shared memory. RDMA reads them later, and from `sources` only.
  [[nodiscard]] virtual bool completes_at_once() const = 0;

  /// Calls `ready` when poll() may move something. for_completions: n_completed() is waited for as
  /// well; who does not wait for it is spared a wake-up per message. (Credits are always waited for
  /// when there are none.)
  virtual void arm(net::ReadyCallback ready, bool for_completions) = 0;
  /// The same for who waits in a set, at most kDirectWait. False: only arm() will do now.
  virtual bool arm_in(const net::WaitSet& /*set*/, bool /*for_completions*/) { return false; }
  [[nodiscard]] virtual const ChannelCounters& counters() const = 0;
};

class ChannelReceiver {
 public:
  ChannelReceiver() = default;
  ChannelReceiver(const ChannelReceiver&) = delete;
  ChannelReceiver& operator=(const ChannelReceiver&) = delete;
  virtual ~ChannelReceiver() = default;

  [[nodiscard]] virtual const std::string& peer() const = 0;
  [[nodiscard]] virtual const RingShape& ring() const = 0;
  [[nodiscard]] virtual std::string transport() const = 0;

  /// Whether no message has come since the last poll(), as a counter in memory tells; false where
  /// there is none. For who looks again and again, perhaps on a core that it shares with whom it
  /// waits for. What has gone wrong only poll() notices.
  [[nodiscard]] virtual bool is_quiet() const { return false; }
  /// The next complete message, in order, or null. It lies in this receiver, and its slot is the
  /// caller's, until release(), also if the channel fails meanwhile.
  virtual Result<const Incoming*> poll() = 0;
  /// Gives slots back, in the order in which they came.
  virtual Result<void> release(std::uint32_t slot) = 0;

  virtual void arm(net::ReadyCallback ready) = 0;
  virtual bool arm_in(const net::WaitSet& /*set*/) { return false; }
  /// For who does not poll() this channel for now: what comes ends no wait until the next arm_in().
  virtual void leave_set() {}
  [[nodiscard]] virtual const ChannelCounters& counters() const = 0;
};

/// Before a wait: a receiver that is polled after it is armed, another one may not end it.
inline bool arm_or_leave(ChannelReceiver& receiver, const net::WaitSet& set, bool is_polled) {
  if (is_polled) return receiver.arm_in(set);
  receiver.leave_set();
  return true;
}

}  // namespace recua::rpc
