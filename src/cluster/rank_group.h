#pragma once
/// RankGroup: a rank's place among those that have its layers in common. It collects the channels
/// to and from each of them, and is the Communicator of its slice once they are all there.
///
/// Channels between ranks have numbers of their own, which say from whom to whom. Life: made with
/// the session -> attach() for each channel -> connect() on the stage's loop -> calibrate() and
/// calls of the stage's compute thread -> disconnect() there. Threads: attach() on the control
/// loop, cancel() any.

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/link_wire.h"
#include "cluster/plan.h"
#include "cluster/ring_buffer.h"
#include "collective/channel_communicator.h"
#include "model/communicator.h"
#include "rpc/link.h"

namespace recua::cluster {

/// Numbers of channels between ranks begin here; no plan has so many workers.
inline constexpr std::uint32_t kGroupChannels = 0x10000;

struct GroupChannel {
  std::uint32_t from = 0;  // Ranks.
  std::uint32_t to = 0;
};
constexpr std::uint32_t group_channel_number(GroupChannel channel) {
  return kGroupChannels + channel.from * kRanksMax + channel.to;
}
/// Nothing: a number of another kind, or a channel from a rank to itself.
std::optional<GroupChannel> group_channel_of(std::uint32_t number);
/// What a rank reports under this number is not about a channel but about its group.
constexpr std::uint32_t group_report_number(std::uint32_t rank) {
  return group_channel_number({.from = rank, .to = rank});
}

/// Rings between ranks: pieces of a vector, several under way.
inline constexpr rpc::RingShape kGroupRing{.n_slots = 16, .slot_bytes = (std::uint64_t{128} << 10)};
/// What a rank's rings and buffers to send from take.
std::uint64_t group_bytes(std::uint32_t n_ranks);

class RankGroup final : public model::Communicator {
 public:
  RankGroup(std::uint32_t rank, std::uint32_t n_ranks);

  [[nodiscard]] std::uint32_t rank() const override { return rank_; }
  [[nodiscard]] std::uint32_t n_ranks() const override { return n_ranks_; }

  /// Takes a channel that this rank sends or receives on. kProtocol: it is not one of ours, or came
  /// twice.
  Result<void> attach(GroupChannel channel, ChannelEnd end);
  /// kProtocol: names a rank whose channel is missing.
  Result<void> check_complete() const;

  /// How links are made: as Session::link_context().
  using MakeContext = std::function<rpc::LinkContext(const ChannelEnd& end, bool sends)>;
  /// Makes the links on the stage's loop. waiter: of that loop; outlives the group's calls.
  Result<void> connect(rpc::ChannelId id, const net::Env& loop_env, const rpc::LinkPolicy* policy,
                       const MakeContext& make_context, std::unique_ptr<collective::Waiter> waiter);
  /// Waits until it is decided what carries the links, then measures up to which length sums go
  /// one-shot; all ranks take what rank 0 measured. A collective call, the first one. values_max:
  /// the longest vector to come, the same on all ranks. Gives a line for people; empty where there
  /// is nothing to say. Takes tens of ms. Errors: as of any call.
  Result<std::string> calibrate(std::size_t values_max);
  /// Drops all that lives on the loop; there, unless nothing ever ran.
  void disconnect();
  /// What the links did, once they were dropped: of each the other end's name, none of this one's.
  [[nodiscard]] const std::vector<SessionLink>& links() const { return links_; }
  /// For calls that model::Communicator does not have; null for the only rank. From connect() to
  /// disconnect().
  [[nodiscard]] collective::ChannelCommunicator* channels() const { return channels_.get(); }
  /// How ranks send each other summands, and whether they may compute meanwhile, which older ones
  /// cannot: the same on all of them. Before connect().
  void set_sums(collective::WireFormat format, bool may_overlap) {
    sums_ = format;
    may_overlap_ = may_overlap;
  }
  /// How long nothing may move in a call; before connect().
  void set_timeout(net::Duration timeout) { timeout_ = timeout; }
  /// Ends a call that waits for others, and all to come. Any thread.
  void cancel();

  Result<void> all_reduce(std::span<float> values) override;
  Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                          std::span<float> out) override;
  Result<void> broadcast(std::span<float> values, std::uint32_t root) override;
  Result<void> barrier() override;
  Result<void> begin_all_reduce(std::span<float> values) override;
  Result<void> finish_all_reduce() override;
  Result<void> help_all_reduce() override;
  [[nodiscard]] bool overlaps() const override;

 private:
  struct Peer {
    ChannelEnd in;
    ChannelEnd out;
    std::unique_ptr<RingBuffer> ring;  // What `in` writes to.
  };
  /// What the links from a peer and to it run on.
  struct Streams {
    std::shared_ptr<rpc::LinkStream> in;
    std::shared_ptr<rpc::LinkStream> out;
  };
  /// One connection for both where both ranks know that: the one from the lower rank to the higher;
  /// the other is closed.
  Result<Streams> streams_of(std::uint32_t rank, const net::asio::any_io_executor& executor);

  std::uint32_t rank_;
  std::uint32_t n_ranks_;
  std::vector<Peer> peers_;         // By rank; the own one is empty.
  std::vector<SessionLink> links_;  // What they did: once they were dropped.
  const net::Clock* clock_ = nullptr;
  net::Duration timeout_ = collective::CommunicatorOptions{}.timeout;
  collective::WireFormat sums_ = collective::WireFormat::kF32;
  bool may_overlap_ = false;
  std::unique_ptr<collective::Waiter> waiter_;
  std::unique_ptr<collective::ChannelCommunicator> channels_;
  std::mutex mutex_;  // Of channels_ as cancel() sees it.
};

}  // namespace recua::cluster
