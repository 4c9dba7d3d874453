#pragma once
/// ChannelCommunicator: collective calls over channels of any transport, one in each direction
/// between every two ranks of a group.
///
///   all_reduce      small: one-shot, everybody's vector to everybody, added up by each; one way of
///                   latency. Large: each rank adds up one part, then everybody gets all parts: two
///                   ways, but 2 (n - 1) / n times the vector per rank instead of n - 1 times.
///   reduce_scatter  the first half of that, with the caller's parts
///   all_gather, broadcast, barrier   straight from whoever has it to everybody
///
/// **Same bits.** Both kinds of all_reduce add every element in rank order, so they give the same
/// bits on every rank, and so the switch between them does. Where it lies (one_shot_values_max)
/// must be the same on all ranks: calibrate() measures it for all, or options fix it.
///
/// Any number of ranks, any sizes; parts and vectors may be empty. Vectors larger than a slot go in
/// several messages. With two ranks nothing but the receiver's sum touches the numbers between the
/// caller's vector and the other's: docs/protocol.md, "Collectives".
///
/// Waiting: polls for as long as it pays off (net/spin_budget.h), then sleeps in the channels'
/// loop. Errors: kUnavailable and kTimeout name the ranks that are missing, kProtocol the rank that
/// makes another call and both sizes. Whoever fails tells the others why. After an error every call
/// returns it: the epoch is over.
/// Threads: one, which also runs the channels' loop; cancel() any. Nothing is allocated by a call.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "collective/exchange.h"
#include "collective/waiter.h"
#include "model/communicator.h"
#include "net/direct_sleep.h"
#include "net/spin_budget.h"

namespace recua::collective {

struct CommunicatorOptions {
  /// Without anything moving, until a rank counts as missing.
  net::Duration timeout = std::chrono::seconds(30);
  /// The longest that a call polls before it sleeps; as net::Env::spin.
  net::Duration spin = net::default_spin();
  /// The longest vector that is summed one-shot. Not set: measured by calibrate().
  std::optional<std::size_t> one_shot_values_max = {};
  /// For slow links; the same on all ranks. Their errors: collective/wire_format.h.
  WireFormat sums = WireFormat::kF32;     // Of all_reduce and reduce_scatter.
  WireFormat gathers = WireFormat::kF32;  // Of all_gather. Broadcasts are exact.
};

/// One rank's share of a group.
struct CommunicatorParts {
  rpc::ChannelId id;
  std::uint32_t rank = 0;
  SendRing ring = {};                       // Its memory() are the senders' sources; outlives them.
  std::vector<PeerChannels> channels = {};  // By rank; none for the own one.
  const net::Clock* clock = nullptr;
  Waiter* waiter = nullptr;  // Of the channels' loop.
  CommunicatorOptions options = {};
};

class ChannelCommunicator final : public model::Communicator {
 public:
  /// kInvalidArgument: rings that do not do (exchange.h).
  static Result<std::unique_ptr<ChannelCommunicator>> create(CommunicatorParts parts);

  [[nodiscard]] std::uint32_t rank() const override { return exchange_->rank(); }
  [[nodiscard]] std::uint32_t n_ranks() const override { return exchange_->n_ranks(); }

  Result<void> all_reduce(std::span<float> values) override;
  Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                          std::span<float> out) override;
  Result<void> broadcast(std::span<float> values, std::uint32_t root) override;
  Result<void> barrier() override;
  /// Between the halves what fits into the rings, and into what the system buffers of connections,
  /// travels by itself; the rest does with the caller's help.
  Result<void> begin_all_reduce(std::span<float> values) override;
  Result<void> finish_all_reduce() override;
  Result<void> help_all_reduce() override;
  [[nodiscard]] bool overlaps() const override { return overlaps_; }
  /// values: counts[r] floats for each rank r, one after another. Those of this rank become the sum
  /// over ranks; the others stay.
  Result<void> reduce_scatter(std::span<float> values, std::span<const std::size_t> counts);

  // The same in steps, for a thread that has other things to do meanwhile: start one call, then
  // poll() until it is done. Vectors are borrowed until then. No deadline watches over it.
  enum class Progress { kNothing, kMoved, kDone };
  Result<void> start_all_reduce(std::span<float> values);
  Result<void> start_all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                                std::span<float> out);
  Result<void> start_broadcast(std::span<float> values, std::uint32_t root);
  Result<void> start_barrier();
  Result<void> start_reduce_scatter(std::span<float> values, std::span<const std::size_t> counts);
  Result<Progress> poll();
  /// Polls, and sleeps, until the call is done.
  Result<void> finish();

  /// The call under way, and every later one, fails with kCancelled. Any thread.
  void cancel();

  /// Memory that RDMA sends from without a copy: for vectors of more than 64 KiB.
  [[nodiscard]] std::span<std::byte> registered_memory() const {
    return exchange_->ring().caller();
  }
  /// For what they count and are reached by; not to be used.
  [[nodiscard]] const PeerChannels& channels(std::uint32_t rank) const {
    return exchange_->channels(rank);
  }
  [[nodiscard]] std::size_t one_shot_values_max() const { return one_shot_values_max_; }
  /// The same number on all ranks.
  void set_one_shot_values_max(std::size_t n) { one_shot_values_max_ = n; }
  /// Whether it is worth while to compute between the halves of an all_reduce; false at first. The
  /// same on all ranks.
  void set_overlaps(bool overlaps) { overlaps_ = overlaps; }
  [[nodiscard]] const CommunicatorOptions& options() const { return options_; }
  /// "shared memory", or what each peer is reached by where that differs.
  [[nodiscard]] std::string transport() const;

 private:
  ChannelCommunicator(CommunicatorParts parts, std::unique_ptr<Exchange> exchange);

  Result<void> begin(Operation operation, std::uint64_t n_values);
  void begin_exchange(Stage stage, Exchange::Mode mode, std::span<float> own);
  void begin_gather(std::span<float> values);
  [[nodiscard]] std::span<float> part_of(std::span<float> values, std::uint32_t rank) const;
  Result<void> run(Result<void> started);
  Error fail(Error error);

  std::unique_ptr<Exchange> exchange_;
  const net::Clock* clock_;
  Waiter* waiter_;
  CommunicatorOptions options_;
  std::size_t one_shot_values_max_;
  bool overlaps_ = false;
  net::SpinBudget budget_;
  net::DirectSleep direct_;

  std::uint64_t n_calls_ = 0;
  bool under_way_ = false;
  bool gather_follows_ = false;  // An all_reduce that is at its first half.
  std::span<float> values_;

  std::shared_ptr<bool> woken_ = std::make_shared<bool>(false);  // Shared with callbacks.
  std::atomic<bool> cancelled_ = false;
  std::optional<Error> failure_;
};

}  // namespace recua::collective
