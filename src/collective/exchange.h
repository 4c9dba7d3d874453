#pragma once
/// One exchange between the ranks of a group: to some ranks a vector each, from some ranks a vector
/// each, which is put somewhere or added up. Every collective call is one or two of these.
///
/// A polled state machine: it never blocks, so that several ranks can live in one thread.
/// docs/protocol.md, "Collectives".
///
/// How numbers travel: F32 goes straight from the caller's vector where channels are done with it
/// at once (the connection, shared memory), or from registered memory when it is large; everything
/// else by way of the SendRing. They are added up straight from the slots they arrived in.
///
/// Errors name the peer: kUnavailable (it is gone, or gave up and says why), kProtocol (it makes
/// another call than this rank). After one the exchange is only good for give_up().
/// Threads: one at a time; the loop of the channels runs on it.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "collective/message.h"
#include "collective/send_ring.h"
#include "rpc/channel.h"
#include "rpc/ring_index.h"

namespace recua::collective {

/// Both directions between this rank and another.
struct PeerChannels {
  std::unique_ptr<rpc::ChannelSender> sender;
  std::unique_ptr<rpc::ChannelReceiver> receiver;
};

/// Of each peer's credits, for saying that this rank gives up.
inline constexpr std::uint32_t kCreditsKept = 1;

/// kInvalidArgument: says what a ring must be like to serve a group.
Result<void> check_ring(const rpc::RingShape& ring);

class Exchange {
 public:
  /// What this rank and another one have for each other.
  struct Part {
    bool sends = false;
    std::span<float> out = {};  // To it. With a lossy format, what this rank keeps is rounded too.
    bool receives = false;
    std::span<float> in = {};  // Where what comes from it goes; not used by sums.
  };
  enum class Mode {
    kPlace,  // What comes goes where `in` says.
    kSum,    // What comes from all other ranks is added to `own`, in rank order.
  };

  /// channels[r]: to and from rank r, none for the own rank. All slots have the same size
  /// (kInvalidArgument).
  static Result<std::unique_ptr<Exchange>> create(rpc::ChannelId id, std::uint32_t rank,
                                                  std::vector<PeerChannels> channels,
                                                  SendRing ring);

  [[nodiscard]] std::uint32_t rank() const { return rank_; }
  [[nodiscard]] std::uint32_t n_ranks() const { return static_cast<std::uint32_t>(peers_.size()); }

  /// What the next exchange is, and what this rank has for each other one: all of it is set before
  /// begin(), and stays until is_drained(). (In place: what was written a moment ago is slow to
  /// copy.)
  [[nodiscard]] CallId& call() { return call_; }
  [[nodiscard]] Part& part(std::uint32_t rank) { return peers_[rank].part; }
  /// For an exchange in which not all take part.
  void clear_parts();
  /// own: for sums, this rank's values, which become the sum. The vectors are borrowed until
  /// is_drained().
  void begin(Mode mode, std::span<float> own);

  /// Moves what can be moved; true when something did.
  Result<bool> poll();
  /// Whether there is nothing to do but to wait for peers of whom nothing has come.
  [[nodiscard]] bool is_quiet() const;
  /// All is sent and all has come.
  [[nodiscard]] bool is_done() const { return n_left_ == 0; }
  /// Besides, nobody reads this rank's vectors any more, and nothing waits for another poll().
  [[nodiscard]] bool is_drained() const;

  /// What a rank that sleeps until something moves does before: `ready` is called from the
  /// channels' loop. Poll once more after it: that poll looks at all channels.
  void arm(const net::ReadyCallback& ready);
  /// The same for who waits in a set. False: only arm() will do now.
  bool arm_in(const net::WaitSet& set);
  /// "nothing from rank 1 (b:7500); rank 2 (c:7500) takes nothing"; empty: nothing is missing.
  [[nodiscard]] std::string missing() const;

  /// Tells all peers why this rank goes no further, as far as their channels take it.
  void give_up(const Error& why);
  /// Whether other peers are gone as well: sentences to add to an error, or nothing.
  [[nodiscard]] std::string others_gone();

  [[nodiscard]] const PeerChannels& channels(std::uint32_t rank) const {
    return peers_[rank].channels;
  }
  [[nodiscard]] const SendRing& ring() const { return ring_; }

 private:
  struct Peer {
    PeerChannels channels;
    std::string name;  // "rank 2 (box3:7500)"
    // A message's descriptor stays untouched until the message is complete: one for each slot of
    // the ring there, of message i at slot(i).
    std::vector<std::array<std::byte, kCallDescriptorBytes>> descriptors;
    rpc::RingIndex slot{1};

    Part part;
    std::size_t n_out = 0;  // Messages of this exchange, and those of them sent.
    std::size_t next_out = 0;
    std::uint64_t first_out = 0;  // The channel's number of the first one.
    std::size_t n_in = 0;
    std::size_t next_in = 0;
    std::size_t n_values_in = 0;
    std::array<std::byte, kCallDescriptorBytes> expected{};  // What each must have as descriptor.
    const rpc::Incoming* held = nullptr;  // Has come, is not used up. Possibly of a later exchange.
    bool held_is_checked = false;

    // Until n_completed() has passed these, the channel reads the caller's vectors.
    std::uint64_t direct_until = 0;
    std::uint64_t direct_before = 0;  // That when this exchange began.
    bool is_gone = false;             // An error of its channels has been reported.
    bool gave_up = false;             // It said so.
  };

  Exchange(rpc::ChannelId id, std::uint32_t rank, std::vector<PeerChannels> channels,
           SendRing ring);

  [[nodiscard]] std::size_t n_messages(std::size_t n_values) const;
  [[nodiscard]] std::span<float> cut(std::span<float> values, std::size_t message) const;
  [[nodiscard]] std::size_t index_of(const Peer& peer) const {
    return static_cast<std::size_t>(&peer - peers_.data());
  }
  [[nodiscard]] bool is_free(const Peer& peer, std::uint64_t until) const {
    return peer.channels.sender->n_completed() >= until;
  }

  Result<bool> settle();
  [[nodiscard]] bool is_large_and_registered() const;
  void choose_way();
  Result<bool> send(Peer& peer);
  Result<bool> poll_sender(Peer& peer);
  std::optional<std::size_t> stage(const Peer& peer, std::span<float> values);
  Result<bool> receive(Peer& peer);
  Result<void> check(Peer& peer);
  Result<bool> place(Peer& peer);
  Result<bool> sum();
  [[nodiscard]] bool may_overwrite_own(std::size_t message) const;
  Result<void> release(Peer& peer);
  void wake_peers();
  Result<bool> look_around();
  Error gone(Peer& peer, Error error);

  rpc::ChannelId id_;
  std::uint32_t rank_;
  SendRing ring_;  // Before the channels, which read it.
  std::vector<Peer> peers_;
  // In the order in which this rank turns to them: the next rank first.
  std::vector<Peer*> others_;
  std::vector<rpc::ChannelSender*> senders_;  // Of all peers, null for the own rank.
  std::size_t slot_bytes_ = 0;
  std::size_t values_max_ = 0;  // Of one message of this exchange, as they are in
  WireFormat format_cut_ = WireFormat::kF32;

  CallId call_;
  Mode mode_ = Mode::kPlace;
  std::span<float> own_;
  bool settled_ = false;  // All senders are: it is known how messages travel.
  bool way_is_chosen_ = false;
  bool direct_ = false;           // From the caller's vectors.
  bool shared_ = false;           // All peers get the same.
  bool own_is_sent_ = false;      // And it is what the sum replaces.
  std::size_t n_takers_ = 0;      // Peers that get something.
  std::size_t first_staged_ = 0;  // Buffer of the first message that all get, if it is copied,
  std::size_t n_staged_ = 0;      // and how many of them have been.
  std::size_t n_left_ = 0;        // Messages that are not sent, or have not come and been used.
  std::size_t n_sums_ = 0;        // Messages of the sum,
  std::size_t next_sum_ = 0;      // and the next one of them.
  std::vector<const std::byte*> summands_;
  bool owes_wake_ = false;  // Peers may sleep although something was sent.
  std::uint32_t n_idle_ = 0;
  std::string giving_up_;  // Its bytes, for as long as they are sent.
};

}  // namespace recua::collective
