#include "rpc/link_negotiation.h"

#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "rpc/shm_path.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

Result<VerbsOffer::Cm> cm_from_wire(const wire::AcceptedLane& lane) {
  VerbsOffer::Cm out;
  if (lane.cm_host().empty() || lane.cm_host().size() > 64 || lane.cm_port() == 0 ||
      lane.cm_port() > 65535 || lane.cm_token().size() != out.token.size()) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("answered with no place for rdma_cm: a host of {} bytes, port {}, a "
                             "token of {} bytes",
                             lane.cm_host().size(), lane.cm_port(), lane.cm_token().size())};
  }
  out.listener = {.host = lane.cm_host(), .port = static_cast<std::uint16_t>(lane.cm_port())};
  std::memcpy(out.token.data(), lane.cm_token().data(), out.token.size());
  return out;
}

}  // namespace

LinkProposal LinkProposal::prepare(const LinkContext& context, RingShape ring,
                                   const std::vector<std::span<std::byte>>& sources,
                                   const std::string& local_address, std::uint64_t n_released,
                                   std::uint32_t generation, bool with_shared_memory) {
  const LinkPolicy& policy = *context.policy;
  LinkProposal out;
  out.ring_ = ring;
  out.generation_ = generation;
  if (policy.allow_shared_memory && with_shared_memory) {
    out.shared_memory_host_ = policy.host_identity;
  }
  out.verbs_ = VerbsOffer::prepare(policy, ring, sources, local_address, n_released, context.env);
  out.none_ = out.verbs_->none();
  return out;
}

bool LinkProposal::worth_offering() const {
  return !shared_memory_host_.empty() || !verbs_->lanes().empty();
}

std::vector<std::byte> LinkProposal::record() const {
  wire::LinkOffer offer;
  offer.set_generation(generation_);
  for (const net::verbs::LaneAddress& lane : verbs_->lanes()) to_wire(lane, *offer.add_lanes());
  offer.set_shared_memory_host(shared_memory_host_);
  offer.set_no_rdma(none_.reason.substr(0, kReasonBytesMax));
  offer.set_uncut_bytes(verbs_->uncut_bytes());
  offer.set_by_cm(verbs_->by_cm());
  return encode_record(RecordKind::kOffer, offer);
}

Result<LinkProposal::Outcome> LinkProposal::take(const wire::LinkAnswer& answer) && {
  Outcome out;
  if (answer.has_shared_ring()) {
    if (shared_memory_host_.empty() || answer.lanes_size() > 0) {
      return Error{ErrorCode::kProtocol, "answered an offer with what was not offered"};
    }
    RECUA_ASSIGN_OR_RETURN(const ShmAddress address, from_wire(answer.shared_ring()));
    Result<std::unique_ptr<FastSender>> path = make_shm_sender(ring_, address);
    out.was_shared_memory = true;
    if (path.ok()) {
      out.path = std::move(*path);
    } else {
      out.error = "cannot use shared memory: " + path.error().message;
    }
    return out;
  }
  if (answer.lanes_size() == 0) {
    const bool ours = verbs_->lanes().empty();
    out.why = ours ? "this end " + none_.reason
                   : "the peer " + wire_text(answer.reason(), kReasonBytesMax);
    out.temporary = ours ? none_.temporary : answer.temporary();
    return out;
  }
  if (answer.lanes_size() > static_cast<int>(kPiecesMax)) {
    return Error{ErrorCode::kProtocol, fmt::format("answered with {} lanes, at most {}",
                                                   answer.lanes_size(), kPiecesMax)};
  }
  std::vector<VerbsOffer::Accepted> accepted;
  for (const wire::AcceptedLane& each : answer.lanes()) {
    RECUA_ASSIGN_OR_RETURN(net::verbs::LaneAddress lane, from_wire(each.lane()));
    std::optional<VerbsOffer::Cm> cm;
    if (verbs_->by_cm()) {
      RECUA_ASSIGN_OR_RETURN(cm, cm_from_wire(each));
    }
    accepted.push_back({.offered = each.offered(), .lane = std::move(lane), .cm = std::move(cm)});
  }
  Result<std::unique_ptr<FastSender>> path =
      VerbsOffer::connect(std::move(verbs_), accepted, answer.takes_rows_alone());
  if (path.ok()) {
    out.path = std::move(*path);
  } else if (path.error().code == ErrorCode::kProtocol) {
    return Error(std::move(path).error());
  } else {
    out.error = "cannot use RDMA: " + path.error().message;
    out.temporary = true;
  }
  return out;
}

Result<LinkChoice> choose_path(const LinkContext& context, RingShape ring, const RingMemory& memory,
                               const std::string& local_address, const wire::LinkOffer& offer) {
  const LinkPolicy& policy = *context.policy;
  LinkChoice out;
  out.answer.set_generation(offer.generation());
  const bool same_host = policy.allow_shared_memory && memory.shared_fd >= 0 &&
                         !policy.host_identity.empty() &&
                         offer.shared_memory_host() == policy.host_identity;
  if (same_host) {
    ShmAddress address;
    Result<std::unique_ptr<FastReceiver>> path = make_shm_receiver(ring, memory.shared_fd, address);
    if (path.ok()) {
      to_wire(address, *out.answer.mutable_shared_ring());
      out.path = std::move(*path);
      return out;
    }
    out.why = "this end cannot use shared memory: " + path.error().message;
  }
  if (offer.lanes_size() > static_cast<int>(kPiecesMax)) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("offered {} lanes, at most {}", offer.lanes_size(), kPiecesMax)};
  }
  if (offer.lanes_size() == 0) {
    const std::string theirs = wire_text(offer.no_rdma(), kReasonBytesMax);
    out.why = "the peer " + (theirs.empty() ? "does not use RDMA" : theirs);
    // The sender knows its own reason better than what we could say.
    out.answer.set_reason("was offered no RDMA");
    return out;
  }
  std::vector<net::verbs::LaneAddress> offered;
  for (const wire::LinkLane& lane : offer.lanes()) {
    RECUA_ASSIGN_OR_RETURN(offered.emplace_back(), from_wire(lane));
  }
  RECUA_ASSIGN_OR_RETURN(VerbsAnswer verbs, accept_lanes(policy, ring, memory.bytes, local_address,
                                                         offered, offer.by_cm(), context.env));
  if (verbs.receiver == nullptr) {
    out.answer.set_reason(verbs.none.reason.substr(0, kReasonBytesMax));
    out.answer.set_temporary(verbs.none.temporary);
    out.why = "this end " + verbs.none.reason;
    return out;
  }
  // Lanes overtake each other.
  out.answer.set_takes_rows_alone(verbs.accepted.size() == 1);
  for (const VerbsOffer::Accepted& each : verbs.accepted) {
    wire::AcceptedLane& lane = *out.answer.add_lanes();
    lane.set_offered(static_cast<std::uint32_t>(each.offered));
    to_wire(each.lane, *lane.mutable_lane());
    if (each.cm) {
      lane.set_cm_host(each.cm->listener.host);
      lane.set_cm_port(each.cm->listener.port);
      lane.set_cm_token(each.cm->token.data(), each.cm->token.size());
    }
  }
  out.path = std::move(verbs.receiver);
  return out;
}

std::string connection_transport(const std::string& why) {
  return why.empty() ? "tcp" : fmt::format("tcp, because {}", why);
}

void report_link(const LinkContext& context, const std::string& from, const std::string& to,
                 const std::string& what) {
  const std::string line = fmt::format("link {}->{}: {}", from, to, what);
  if (context.report) {
    context.report(line);
  } else {
    log_info("{}", line);
  }
}

}  // namespace recua::rpc
