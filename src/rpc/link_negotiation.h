#pragma once
/// How the two ends of a link agree on a fast path: what the sender offers, what the receiver
/// answers. The state machines around it are link_sender.cc and link_receiver.cc.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "rpc/fast_path.h"
#include "rpc/link.h"
#include "rpc/link_record.h"
#include "rpc/verbs_path.h"

namespace recua::rpc {

/// The sender's half of one generation.
class LinkProposal {
 public:
  /// What this end has; registers memory and makes queue pairs. local_address: the connection's.
  static LinkProposal prepare(const LinkContext& context, RingShape ring,
                              const std::vector<std::span<std::byte>>& sources,
                              const std::string& local_address, std::uint64_t n_released,
                              std::uint32_t generation, bool with_shared_memory);

  /// Whether there is anything to offer; otherwise none() says why not.
  [[nodiscard]] bool worth_offering() const;
  [[nodiscard]] std::vector<std::byte> record() const;
  /// Why this end has no RDMA: completes "this end ...".
  [[nodiscard]] const NoLanes& none() const { return none_; }

  struct Outcome {
    std::unique_ptr<FastSender> path;  // Null: the connection, because why.
    std::string why;                   // "the peer has no RDMA device"
    bool temporary = false;            // Try again later.
    std::string error;                 // The answer was good, but this end could not use it.
    bool was_shared_memory = false;
  };
  /// Uses the receiver's answer. kProtocol: the peer broke the rules.
  Result<Outcome> take(const wire::LinkAnswer& answer) &&;

 private:
  RingShape ring_;
  std::uint32_t generation_ = 0;
  std::string shared_memory_host_;
  std::unique_ptr<VerbsOffer> verbs_;
  NoLanes none_;
};

/// The receiver's half: what it picks.
struct LinkChoice {
  std::unique_ptr<FastReceiver> path;  // Null: the connection.
  wire::LinkAnswer answer;
  std::string why;  // Why nothing better, for our own log: "the peer ...", "this end ...".
};
/// kProtocol: the offer breaks the rules.
Result<LinkChoice> choose_path(const LinkContext& context, RingShape ring, const RingMemory& memory,
                               const std::string& local_address, const wire::LinkOffer& offer);

/// What an end that uses the connection is carried by: "tcp, because " and why, if there is a why.
std::string connection_transport(const std::string& why);

/// "link FROM->TO: " and what became of it, for whoever context.report is, else for the log.
void report_link(const LinkContext& context, const std::string& from, const std::string& to,
                 const std::string& what);

}  // namespace recua::rpc
