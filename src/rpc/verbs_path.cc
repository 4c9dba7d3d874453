// What both sides of an RDMA path share: announcements, pieces, ports.
#include "rpc/verbs_path.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"

namespace recua::rpc {
namespace {

// sequence 0-15 | piece 16-18 | n_pieces - 1 19-21 | starving 22 | rows alone 23 | 0
constexpr unsigned kPieceShift = 16;
constexpr unsigned kPiecesShift = 19;
constexpr std::uint32_t kPieceBits = 7;
constexpr std::uint32_t kStarving = std::uint32_t{1} << 22U;
constexpr std::uint32_t kRowsAlone = std::uint32_t{1} << 23U;
static_assert(kPiecesMax == kPieceBits + 1);

constexpr std::uint64_t kCacheLine = 64;

}  // namespace

std::uint32_t encode(const PieceAnnouncement& announcement) {
  return announcement.sequence | (std::uint32_t{announcement.piece} << kPieceShift) |
         ((announcement.n_pieces - std::uint32_t{1}) << kPiecesShift) |
         (announcement.starving ? kStarving : 0) | (announcement.rows_alone ? kRowsAlone : 0);
}

Result<PieceAnnouncement> decode_announcement(std::uint32_t value) {
  const PieceAnnouncement out{
      .sequence = static_cast<std::uint16_t>(value),
      .piece = static_cast<std::uint8_t>((value >> kPieceShift) & kPieceBits),
      .n_pieces = static_cast<std::uint8_t>(((value >> kPiecesShift) & kPieceBits) + 1),
      .starving = (value & kStarving) != 0,
      .rows_alone = (value & kRowsAlone) != 0};
  if (encode(out) != value || out.piece >= out.n_pieces || (out.rows_alone && out.n_pieces > 1)) {
    return Error{ErrorCode::kProtocol, fmt::format("announced a write by {:#010x}, in which bits "
                                                   "are set that mean nothing",
                                                   value)};
  }
  return out;
}

PieceRange piece_range(std::uint64_t message_bytes, std::size_t piece, std::size_t n_pieces) {
  const std::uint64_t share =
      align_up<std::uint64_t>((message_bytes + n_pieces - 1) / n_pieces, kCacheLine);
  return {.begin = std::min(message_bytes, piece * share),
          .end = std::min(message_bytes, (piece + 1) * share)};
}

std::vector<net::verbs::PortChoice> usable_ports(const LinkPolicy& policy,
                                                 const std::string& local_address, NoLanes& none) {
  if (!policy.allow_rdma || policy.provider == nullptr) {
    none = {.reason = policy.no_rdma_reason, .temporary = false};
    return {};
  }
  auto devices = policy.provider->devices();
  if (!devices.ok()) {
    none = {.reason = "cannot use RDMA: " + devices.error().message, .temporary = false};
    return {};
  }
  if (devices->empty()) {
    none = {.reason = "has no RDMA device", .temporary = true};
    return {};
  }
  auto ports = net::verbs::choose_ports(*devices, policy.ports, local_address);
  if (!ports.ok()) {
    none = {.reason = "has no usable RDMA port: " + ports.error().message, .temporary = true};
    return {};
  }
  if (ports->size() > std::min(policy.lanes_max, kPiecesMax)) {
    ports->resize(std::min(policy.lanes_max, kPiecesMax));
  }
  return std::move(*ports);
}

}  // namespace recua::rpc
