#include "cluster/rank_group.h"

#include <utility>

#include <fmt/format.h>

#include "collective/calibrate.h"
#include "net/deadline.h"

namespace recua::cluster {
namespace {

/// Enough for a switch that matters: on a slow link vectors that take a millisecond are long past
/// it, on a fast one a quarter of a megabyte is tried within it.
constexpr net::Duration kCalibrationTime = std::chrono::milliseconds(10);

std::string describe_sums(std::size_t one_shot_values_max, std::size_t values_max) {
  if (one_shot_values_max >= values_max) return "sums are one-shot";
  if (one_shot_values_max == 0) return "sums are scattered and gathered";
  return fmt::format("sums of up to {} are one-shot, larger ones scattered and gathered",
                     format_bytes(one_shot_values_max * sizeof(float)));
}

}  // namespace

std::optional<GroupChannel> group_channel_of(std::uint32_t number) {
  if (number < kGroupChannels || number >= kGroupChannels + kRanksMax * kRanksMax) {
    return std::nullopt;
  }
  const std::uint32_t index = number - kGroupChannels;
  const GroupChannel channel{.from = index / kRanksMax, .to = index % kRanksMax};
  if (channel.from == channel.to) return std::nullopt;
  return channel;
}

std::uint64_t group_bytes(std::uint32_t n_ranks) {
  // A ring per other rank, and about two buffers per slot or rank to send from.
  const std::uint64_t n_buffers = 2 * std::uint64_t{kGroupRing.n_slots + n_ranks};
  return kGroupRing.slot_bytes * ((n_ranks - 1) * std::uint64_t{kGroupRing.n_slots} + n_buffers);
}

RankGroup::RankGroup(std::uint32_t rank, std::uint32_t n_ranks)
    : rank_(rank), n_ranks_(n_ranks), peers_(n_ranks) {}

Result<void> RankGroup::attach(GroupChannel channel, ChannelEnd end) {
  const bool sends = channel.from == rank_;
  const std::uint32_t other = sends ? channel.to : channel.from;
  if ((!sends && channel.to != rank_) || other >= n_ranks_) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("a channel from rank {} to rank {} does not belong to rank {} of {}",
                             channel.from, channel.to, rank_, n_ranks_)};
  }
  ChannelEnd& mine = sends ? peers_[other].out : peers_[other].in;
  if (mine.connection != nullptr || channels_ != nullptr) {
    return Error{ErrorCode::kProtocol, fmt::format("the channel from rank {} to rank {} came twice",
                                                   channel.from, channel.to)};
  }
  mine = std::move(end);
  return ok();
}

Result<void> RankGroup::check_complete() const {
  for (std::uint32_t r = 0; r < n_ranks_; ++r) {
    if (r == rank_) continue;
    if (peers_[r].in.connection != nullptr && peers_[r].out.connection != nullptr) continue;
    return Error{ErrorCode::kProtocol,
                 fmt::format("start_session came before both channels of rank {} with rank {} were "
                             "open",
                             rank_, r)};
  }
  return ok();
}

Result<RankGroup::Streams> RankGroup::streams_of(std::uint32_t rank,
                                                 const net::asio::any_io_executor& executor) {
  // The rank that opened a connection knows the other by the address that it listens at, the other
  // one only a port of the moment.
  const std::string name = peers_[rank].out.connection->peer();
  const auto open = [&](ChannelEnd& end) -> Result<std::shared_ptr<rpc::LinkStream>> {
    RECUA_ASSIGN_OR_RETURN(auto moved, std::exchange(end.connection, {})->move_to(executor));
    return rpc::make_link_stream(std::move(moved), name);
  };
  ChannelEnd& in = peers_[rank].in;
  ChannelEnd& out = peers_[rank].out;
  Streams streams;
  if (rpc::has_feature(in.features, rpc::Feature::kSharedConnection) &&
      rpc::has_feature(out.features, rpc::Feature::kSharedConnection)) {
    ChannelEnd& kept = rank_ < rank ? out : in;
    RECUA_ASSIGN_OR_RETURN(streams.in, open(kept));
    streams.out = streams.in;
    (rank_ < rank ? in : out).connection.reset();
    return streams;
  }
  RECUA_ASSIGN_OR_RETURN(streams.in, open(in));
  RECUA_ASSIGN_OR_RETURN(streams.out, open(out));
  return streams;
}

Result<void> RankGroup::connect(rpc::ChannelId id, const net::Env& loop_env,
                                const rpc::LinkPolicy* policy, const MakeContext& make_context,
                                std::unique_ptr<collective::Waiter> waiter) {
  if (n_ranks_ == 1) return ok();
  if (waiter == nullptr) {
    return Error{ErrorCode::kUnsupported,
                 "a tensor split needs a thread of its own for each rank, which a simulation of "
                 "one thread does not have"};
  }
  collective::CommunicatorParts parts;
  parts.id = id;
  parts.rank = rank_;
  parts.clock = loop_env.clock;
  parts.waiter = waiter.get();
  parts.options.spin = loop_env.spin;
  parts.options.timeout = timeout_;
  parts.options.sums = sums_;
  parts.channels.resize(n_ranks_);
  RECUA_ASSIGN_OR_RETURN(parts.ring, collective::SendRing::create(kGroupRing, n_ranks_, 0));
  for (std::uint32_t r = 0; r < n_ranks_; ++r) {
    if (r == rank_) continue;
    Peer& peer = peers_[r];
    RECUA_ASSIGN_OR_RETURN(peer.ring, RingBuffer::create(nullptr, kGroupRing, policy));
    RECUA_ASSIGN_OR_RETURN(const Streams streams, streams_of(r, loop_env.executor));
    RECUA_ASSIGN_OR_RETURN(parts.channels[r].receiver,
                           rpc::make_link_receiver(make_context(peer.in, false), streams.in, id,
                                                   kGroupRing, peer.ring->memory()));
    std::vector<std::span<std::byte>> sources(1, parts.ring.memory());
    parts.channels[r].sender =
        rpc::make_link_sender(make_context(peer.out, true), streams.out, peer.out.ring,
                              std::move(sources), peer.out.features);
  }
  RECUA_ASSIGN_OR_RETURN(auto made, collective::ChannelCommunicator::create(std::move(parts)));
  for (std::uint32_t r = 0; r < n_ranks_; ++r) {
    if (r == rank_) continue;
    for (const bool sends : {true, false}) {
      const ChannelEnd& end = sends ? peers_[r].out : peers_[r].in;
      SessionLink& link = links_.emplace_back();
      link.number = end.number;
      link.stats.sends = sends;
      (sends ? link.stats.to : link.stats.from) = end.name;
    }
  }
  clock_ = loop_env.clock;
  const std::scoped_lock lock(mutex_);
  waiter_ = std::move(waiter);
  channels_ = std::move(made);
  return ok();
}

Result<std::string> RankGroup::calibrate(std::size_t values_max) {
  if (n_ranks_ == 1) return std::string();
  RECUA_RETURN_IF_ERROR(barrier());
  const net::TimePoint begin = clock_->now();
  const collective::CalibrationBounds bounds{
      .time_max = kCalibrationTime, .values_max = values_max, .may_overlap = may_overlap_};
  Result<collective::Calibration> measured = collective::calibrate(*channels_, *clock_, bounds);
  if (!measured.ok()) {
    return std::move(measured).error().within("measuring sums between the ranks");
  }
  if (measured->points.empty()) return std::string();
  return fmt::format(
      "{}{}{} (measured with up to {} in {})",
      describe_sums(measured->one_shot_values_max, values_max),
      measured->overlaps ? ", computing meanwhile" : "",
      sums_ == collective::WireFormat::kF32 ? "" : ", sent as " + to_string(sums_),
      format_bytes(measured->points.back().n_values * sizeof(float)),
      net::to_string(std::chrono::round<std::chrono::milliseconds>(clock_->now() - begin)));
}

void RankGroup::disconnect() {
  if (channels_ != nullptr) {
    std::size_t i = 0;
    for (std::uint32_t r = 0; r < n_ranks_; ++r) {
      if (r == rank_) continue;
      const collective::PeerChannels& channels = channels_->channels(r);
      rpc::LinkStats& sent = links_[i++].stats;
      sent.transport = channels.sender->transport();
      sent.counters = channels.sender->counters();
      rpc::LinkStats& received = links_[i++].stats;
      received.transport = channels.receiver->transport();
      received.counters = channels.receiver->counters();
    }
  }
  const std::scoped_lock lock(mutex_);
  channels_.reset();
  waiter_.reset();
}

void RankGroup::cancel() {
  const std::scoped_lock lock(mutex_);
  if (channels_ != nullptr) channels_->cancel();
}

Result<void> RankGroup::all_reduce(std::span<float> values) {
  return n_ranks_ == 1 ? ok() : channels_->all_reduce(values);
}
Result<void> RankGroup::all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                                   std::span<float> out) {
  if (n_ranks_ > 1) return channels_->all_gather(mine, counts, out);
  std::copy(mine.begin(), mine.end(), out.begin());
  return ok();
}
Result<void> RankGroup::broadcast(std::span<float> values, std::uint32_t root) {
  return n_ranks_ == 1 ? ok() : channels_->broadcast(values, root);
}
Result<void> RankGroup::begin_all_reduce(std::span<float> values) {
  return n_ranks_ == 1 ? ok() : channels_->begin_all_reduce(values);
}
Result<void> RankGroup::finish_all_reduce() {
  return n_ranks_ == 1 ? ok() : channels_->finish_all_reduce();
}
Result<void> RankGroup::help_all_reduce() {
  return n_ranks_ == 1 ? ok() : channels_->help_all_reduce();
}
bool RankGroup::overlaps() const { return n_ranks_ > 1 && channels_->overlaps(); }
Result<void> RankGroup::barrier() { return n_ranks_ == 1 ? ok() : channels_->barrier(); }

}  // namespace recua::cluster
