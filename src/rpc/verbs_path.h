#pragma once
/// The fast path over RDMA lanes (net/verbs/lane.h): messages by one-sided writes into the
/// receiver's ring, each announced by 32 bits; credits by writes into a word of the sender's.
/// docs/protocol.md, "RDMA lanes".
///
/// Queue pairs need each other's numbers, so a path is made in three steps: the sender prepares a
/// lane on each of its ports, the receiver picks those that reach one of its own and answers with
/// the other ends, the sender connects. A lane is known to both by its index in the answer.
/// Long messages are striped: cut into one piece per lane, each announced by itself.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/verbs/lane.h"
#include "rpc/fast_path.h"
#include "rpc/link.h"

namespace recua::rpc {

/// The most pieces of a message, and lanes of a path.
inline constexpr std::size_t kPiecesMax = 8;

/// The 32 bits that come with a piece. docs/protocol.md, "RDMA lanes".
struct PieceAnnouncement {
  std::uint16_t sequence = 0;  // Its low 16 bits.
  std::uint8_t piece = 0;
  std::uint8_t n_pieces = 1;
  bool starving = false;
  bool rows_alone = false;  // Header and descriptor follow from the message before.
  friend bool operator==(const PieceAnnouncement&, const PieceAnnouncement&) = default;
};
std::uint32_t encode(const PieceAnnouncement& announcement);
/// kProtocol: bits that mean nothing.
Result<PieceAnnouncement> decode_announcement(std::uint32_t value);

/// Bytes [begin, end) of the message that make up a piece: shares of equal size, cut at cache
/// lines.
struct PieceRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
PieceRange piece_range(std::uint64_t message_bytes, std::size_t piece, std::size_t n_pieces);

/// Why there are no lanes; completes "this end ..." or "the peer ...".
struct NoLanes {
  std::string reason;
  bool temporary = false;  // Trying again later may help.
};

/// A sender's lanes before they are connected.
class VerbsOffer {
 public:
  /// local_address: the connection's own. n_released: from where credits count.
  static std::unique_ptr<VerbsOffer> prepare(const LinkPolicy& policy, RingShape ring,
                                             std::vector<std::span<std::byte>> sources,
                                             const std::string& local_address,
                                             std::uint64_t n_released, const net::Env& env);
  ~VerbsOffer();
  VerbsOffer(const VerbsOffer&) = delete;
  VerbsOffer& operator=(const VerbsOffer&) = delete;

  /// Empty: none() says why.
  [[nodiscard]] std::vector<net::verbs::LaneAddress> lanes() const;
  [[nodiscard]] const NoLanes& none() const;
  [[nodiscard]] std::uint64_t uncut_bytes() const;
  /// Whether rdma_cm is to connect them: asked for, or the only way (iWARP).
  [[nodiscard]] bool by_cm() const;

  /// Where the receiver's rdma_cm waits, and what to show there.
  struct Cm {
    net::Endpoint listener;
    net::verbs::CmToken token{};
  };
  struct Accepted {
    std::size_t offered = 0;  // Index into lanes().
    net::verbs::LaneAddress lane;
    std::optional<Cm> cm = {};  // Set: connect through it.
  };
  /// takes_rows_alone: as the receiver says. kProtocol: an index twice or out of range, an address
  /// that no honest peer sends, a window that is no ring of ours.
  static Result<std::unique_ptr<FastSender>> connect(std::unique_ptr<VerbsOffer> offer,
                                                     std::span<const Accepted> accepted,
                                                     bool takes_rows_alone);

 private:
  struct State;
  explicit VerbsOffer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// The receiver's side of an offer.
struct VerbsAnswer {
  std::unique_ptr<FastReceiver> receiver;      // Null: none says why.
  std::vector<VerbsOffer::Accepted> accepted;  // In the order of the path's lanes.
  NoLanes none;
};
/// kProtocol: an offered address that no honest peer sends.
Result<VerbsAnswer> accept_lanes(const LinkPolicy& policy, RingShape ring,
                                 std::span<std::byte> memory, const std::string& local_address,
                                 std::span<const net::verbs::LaneAddress> offered, bool by_cm,
                                 const net::Env& env);

/// What both sides do first: our usable ports, or why there are none.
std::vector<net::verbs::PortChoice> usable_ports(const LinkPolicy& policy,
                                                 const std::string& local_address, NoLanes& none);

}  // namespace recua::rpc
